"""What the files of a run say, but for when they were made and after what."""

import hashlib
import json
from pathlib import Path

from safetensors import safe_open

TOLD = {"seconds", "date", "digest", "run_digest", "replaced_fingerprint", "notes"}  # replaced: what was there before
REMAINS = (".new-", ".old", ".lock", ".writer")
DRAWN = (".html", ".svg", ".png")  # from the numbers beside them


def facts(folder: Path) -> dict[str, object]:
    """By file, what is to be the same in two runs of the same settings; without what is on its way."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: _of(file) for name, file in files.items() if not name.startswith(".") and "/." not in name}


def remains(folder: Path) -> list[str]:
    """What a command that was ended has left behind, but for an empty folder that could not be removed."""
    found = [path for path in folder.rglob(".*") if any(word in path.name for word in REMAINS)]
    return sorted(path.name for path in found if not path.is_dir() or any(path.iterdir()))


def is_whole(folder: Path) -> bool:
    """Whether each file is the one that the manifest lists."""
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    return all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in listed.items())


def timeless(document: object) -> object:
    """A JSON document without that."""
    if isinstance(document, dict):
        return {key: timeless(value) for key, value in document.items() if key not in TOLD}
    return [timeless(value) for value in document] if isinstance(document, list) else document


def _of(file: Path) -> object:
    if file.name == "manifest.json":
        return sorted(json.loads(file.read_text())["files"])
    if file.suffix == ".json":
        return timeless(json.loads(file.read_text()))
    if file.suffix == ".safetensors":
        with safe_open(file, "numpy") as tensors:
            return tensors.metadata(), {name: tensors.get_tensor(name).tobytes() for name in tensors.keys()}  # noqa: SIM118
    return None if file.suffix in DRAWN else file.read_bytes()
