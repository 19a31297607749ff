"""Files made to mislead: each is refused with a documented code and one line, before memory is taken for it."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from lora_mnist.datasets.dataset import load
from lora_mnist.datasets.mnist import MNIST_FILES
from lora_mnist.errors import DataError

from ..conftest import rehash
from .processes import Ended, commands
from .stages import ADAPTER, SMALL, VERIFY
from .tally import some

TENSORS = "tensors that mislead: lengths, offsets, types, names, values"
DOCUMENTS = "JSON that misleads: depth, NaN, 1e999, twice the same key, another encoding"
IMAGES = "images that mislead: magic numbers, dimensions, a bomb, what follows the end"


def packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header and any length of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype="F32", shape=(2, 2), offsets=(0, 16)) -> dict[str, object]:
    return {"linear1.weight": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "a length alone": struct.pack("<Q", 8),
    "a header of 2^63 bytes": packed(b"{}", length=2**63),
    "a header of 2^40 bytes": packed(b"{}", length=2**40),
    "a header longer than the file": packed(b"{}", length=100),
    "no header": packed(b""),
    "a header of brackets": packed(b"[" * 100_000),
    "a header that is no table": packed([1, 2]),
    "a header of other letters": packed(b"\xff\xfe{}"),
    "offsets behind the end": packed(one(offsets=(0, 2**40)), bytes(16)),
    "offsets backwards": packed(one(offsets=(16, 0)), bytes(16)),
    "offsets below zero": packed(one(offsets=(-16, 0)), bytes(16)),
    "offsets that overlap": packed({**one(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, bytes(16)),
    "a hole": packed({**one(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]}}, bytes(32)),
    "a shape of 2^62": packed(one(shape=(2**31, 2**31)), bytes(16)),
    "a shape that overflows": packed(one(shape=(2**40, 2**40)), bytes(16)),
    "a type that is none": packed(one(dtype="F33"), bytes(16)),
    "a type of 4 bits": packed(one(dtype="F4"), bytes(16)),
    "the same name twice": packed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2 + b'"b":{}}', bytes(8)),
    "metadata that are no words": packed({"__metadata__": {"lora_mnist": {"a": 1}}, **one()}, bytes(16)),
    "more than it says": packed(one(), bytes(17)),
    "whole numbers": save({"linear1.weight": np.ones((2, 2), np.int64)}),
    "nothing but a NaN": save({"linear1.weight": np.full((2, 2), np.nan, np.float32)}),
}
MISLEADING: dict[str, bytes] = {
    "deep": b"[" * 200_000,
    "deep tables": b'{"a":' * 100_000,
    "NaN": b'{"schema_version": NaN}',
    "1e999": b'{"schema_version": 1e999}',
    "a long number": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "twice the same key": b'{"schema_version": 3, "schema_version": 4}',
    "half a letter": b'{"schema_version": "\\ud800"}',
    "16 bits a letter": '{"schema_version": 3}'.encode("utf-16"),
    "a mark in front": b"\xef\xbb\xbf{}",
    "zeros": bytes(1000),
    "a word": b"true",
}


def require_refused(ended: Ended, *codes: int) -> None:
    assert ended.code in codes, ended
    message = json.loads(ended.out)["error"]["message"]
    assert message.isprintable(), ended
    assert "Traceback" not in ended.err, ended


def test_hostile_tensors_are_refused_wherever_they_lie(states, tally):
    def survive(case: tuple[str, str]) -> None:
        kind, place = case
        with states.copy("everything") as run:
            path = run / place
            path.write_bytes(HOSTILE[kind])
            if not place.startswith("elsewhere"):
                rehash(path.parent)
            options = ("--run", run, "--json", *SMALL)
            lines = {
                "base/model.safetensors": [(*VERIFY, "--run", run), ("evaluate", *options)],
                "base/logits.safetensors": [(*VERIFY, "--run", run), ("report", "--run", run, "--json")],
                f"adapters/{ADAPTER}/adapter_model.safetensors": [
                    (*VERIFY, "--run", run),
                    ("evaluate", "--adapter", ADAPTER, *options),
                    ("merge", "--adapter", ADAPTER, "--name", "m", *options),
                ],
                f"adapters/{ADAPTER}/pictures.safetensors": [("report", "--run", run, "--json")],
                "checkpoints/digit9-full/model.safetensors": [
                    (*VERIFY, "--run", run),
                    ("evaluate", "--checkpoint", path, *options),
                    ("extract", "--checkpoint", path, *options),
                ],
            }[place]
            for ended in commands(*lines):
                require_refused(ended, 4, 5)

    places = [
        *("base/model.safetensors", "base/logits.safetensors", "checkpoints/digit9-full/model.safetensors"),
        *(f"adapters/{ADAPTER}/{name}.safetensors" for name in ("adapter_model", "pictures")),
    ]
    tally.attack(TENSORS, "tensors", some([(kind, place) for place in places for kind in HOSTILE], 6), survive)


def is_shown(command: str, place: str) -> bool:
    """Whether the command shows anything of that document."""
    folder, _, name = place.rpartition("/")
    if name == "run.json":
        return command == "verify"
    return command == "adapters" or not folder.startswith("checkpoints") or name == "manifest.json"


def test_misleading_documents_are_refused(states, tally):
    def survive(case: tuple[str, str]) -> None:
        kind, place = case
        with states.copy("everything") as run:
            (run / place).write_bytes(MISLEADING[kind])
            if Path(place).name != "manifest.json":
                rehash((run / place).parent)
            verified, listed = commands((*VERIFY, "--run", run), ("adapters", "--run", run, "--json"))
            for ended, name in ((verified, "verify"), (listed, "adapters")):
                if ended.code != 0 or is_shown(name, place):
                    require_refused(ended, 4, 5)

    folders = (f"adapters/{ADAPTER}", "checkpoints/digit9-full")
    places = [f"base/{name}.json" for name in ("run", "evaluation", "manifest")]
    places += [f"{folder}/{name}.json" for folder in folders for name in ("finetune", "manifest")]
    tally.attack(DOCUMENTS, "JSON", some([(kind, place) for place in places for kind in MISLEADING], 6), survive)


@pytest.fixture(scope="module")
def nan_network(states):
    """A whole network of ours, fingerprint and all, whose first weight is NaN."""
    import torch

    from lora_mnist.runs.artifact import ArtifactWriter, load_network

    folder = states.path("everything").parent / "nan"
    model, _ = load_network(states.path("everything") / "base" / "model.safetensors")
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    ArtifactWriter(folder).network(model)
    return folder / "model.safetensors"


@pytest.mark.parametrize("command", ["evaluate", "extract"])
def test_a_network_of_nan_gives_no_numbers(states, nan_network, command):
    with states.copy("everything") as run:
        (ended,) = commands((command, "--checkpoint", nan_network, "--run", run, "--json", *SMALL))
        require_refused(ended, 2, 4)


IDX = {
    "another magic number": b"\x01\x02\x03\x04" + bytes(100),
    "255 dimensions": b"\0\0\x08\xff" + b"\xff" * 1020,
    "more than the file": b"\0\0\x08\x03" + struct.pack(">III", 60_000, 28, 28),
    "2^96 images": b"\0\0\x08\x03" + b"\xff" * 12,
    "no dimensions": b"\0\0\x08\0",
    "a header alone": b"\0\0",
    "nothing": b"",
}


@pytest.mark.parametrize("name", MNIST_FILES)
def test_misleading_images_are_refused_by_name(tmp_path, tally, name):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    contents = {kind: (name, content) for kind, content in IDX.items()}
    contents |= {f"{kind}, packed": (f"{name}.gz", gzip.compress(content)) for kind, content in IDX.items()}
    contents["a bomb"] = (f"{name}.gz", gzip.compress(bytes(2**28), 1))
    contents["what follows"] = (f"{name}.gz", gzip.compress(b"x") + b"junk")

    def survive(kind: str) -> None:
        for other in MNIST_FILES:
            (raw / other).unlink(missing_ok=True)
            (raw / f"{other}.gz").unlink(missing_ok=True)
        file, content = contents[kind]
        (raw / file).write_bytes(content)
        with pytest.raises(DataError):
            load("mnist", tmp_path, 0.0, 0)

    tally.attack(IMAGES, name, contents, survive, workers=1)
