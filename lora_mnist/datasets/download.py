"""Download MNIST with torchvision, under a deadline.

torchvision waits for a silent server without end, so it works in a child process that can be ended:
`python -m lora_mnist.datasets.download FOLDER [MIRROR …]`.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

DOWNLOAD_BYTES = 11_594_722  # the four .gz files together
LAST_WORDS = 1 << 16  # bytes: what is read of what the child said
SILENCE = 10  # seconds without a byte after which one connection is given up


def fetch_mnist(
    data: Path, names: Sequence[str], deadline: float, mirrors: Sequence[str] = (), quiet: bool = False
) -> Path:
    """Download the raw files `names` into a new folder below `data` and return that folder, for the caller to check.

    Args:
        deadline: seconds after which the download is ended, however far it came.
        mirrors: base URLs to use instead of torchvision's own.

    Raises:
        OSError: nothing came, or not in time, or it could not be written. The folder is then gone.
    """
    data.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".download-", dir=data))
    command = [sys.executable, "-m", "lora_mnist.datasets.download", str(folder), *mirrors]
    try:
        with tempfile.TemporaryFile() as said:
            with subprocess.Popen(command, stdout=said, stderr=said, stdin=subprocess.DEVNULL) as child:
                try:
                    _await(child, folder, time.monotonic() + deadline, quiet)
                finally:
                    child.kill()
            if child.returncode != 0:
                said.seek(max(0, said.tell() - LAST_WORDS))
                lines = said.read().decode(errors="replace").strip().splitlines()
                raise OSError(lines[-1] if lines else f"the download ended with code {child.returncode}")
        raw = folder / "MNIST" / "raw"
        if missing := [name for name in names if not (raw / name).is_file()]:
            raise OSError(f"the download brought no {missing[0]}")
        return raw
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _await(child: subprocess.Popen, folder: Path, end: float, quiet: bool) -> None:
    show = True if quiet else None  # None: only on a terminal
    with tqdm(total=DOWNLOAD_BYTES, unit="B", unit_scale=True, desc="downloading MNIST", disable=show) as bar:
        while child.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError("the server was too slow")
            time.sleep(0.05)
            bar.update(min(DOWNLOAD_BYTES, sum(file.stat().st_size for file in folder.rglob("*.gz"))) - bar.n)


def import_torchvision() -> ModuleType:
    """Import torchvision, also one built for CUDA beside a torch built for CPU (`pip` installs that pair on Linux).

    Such a torchvision fails to register two detection operators it has no library for, which nothing here uses.
    Declaring their schemas is enough for the import to go through; it is done only when that very error is met.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half-imported
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.lora_mnist_operators = library  # the schemas live as long as this object
    return torchvision


def _main(folder: str, *mirrors: str) -> None:
    import socket

    socket.setdefaulttimeout(SILENCE)
    import_torchvision()
    from torchvision.datasets import MNIST

    if mirrors:
        MNIST.mirrors = list(mirrors)
    MNIST(folder, download=True)


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
