"""What several tests share: a small finished run on the embedded digits, real MNIST where it lies, the command line."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from lora_mnist.cli.main import main
from lora_mnist.datasets.mnist import MNIST_FILES
from lora_mnist.pipeline import Request, Tuning, Workspace, finetune, open_workspace, pretrain
from lora_mnist.runs.folders import _write_manifest
from lora_mnist.training.device import prepare

prepare("cpu")  # as every command does before it computes: some of it only takes effect then

SMOKE = {"data": {"dataset": "digits"}}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A run with a base and one adapter; never changed, copy it with `run_copy`."""
    path = tmp_path_factory.mktemp("finished") / "run"
    pretrain(smoke(path))
    finetune(workspace(path))
    return path


@pytest.fixture
def run_copy(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def adapter(run_copy) -> Path:
    """The one adapter's folder in `run_copy`."""
    return next((run_copy / "adapters").iterdir())


def workspace(path: Path, **asked: object) -> Workspace:
    """The run, opened by a command with such options for an adapter."""
    return open_workspace(Request(run=path, options={"finetune": asked}))


def smoke(path: Path, **options: object) -> Request:
    """A run of seconds on the embedded digits."""
    return Request(run=path, config="smoke", options={**SMOKE, **options})


def resume(request: Request) -> Tuning:
    """What `lora-mnist run` does before it verifies and reports."""
    work, _ = pretrain(request, resume=True)
    return finetune(work, resume=True)


@pytest.fixture(scope="session")
def mnist() -> Path:
    """The folder with real MNIST in its MNIST/raw/."""
    folder = Path(os.environ.get("LORA_MNIST_DATA", "data"))
    raw = folder / "MNIST" / "raw"
    if not all((raw / name).is_file() or (raw / f"{name}.gz").is_file() for name in MNIST_FILES):
        pytest.skip(f"MNIST is not in {raw}; set LORA_MNIST_DATA to run this")
    return folder


@pytest.fixture(autouse=True)
def _same_threads():
    """--threads holds for the process, and the number of threads decides the last bits of a sum."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cli(capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in units of the largest of `other`."""
    return float((one - other).detach().abs().max() / other.detach().abs().max())


def flip_bit(path: Path, position: int = -1) -> None:
    """Damage a file by one bit."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def rehash(folder: Path) -> None:
    """Make the manifest fit files that were changed behind its back."""
    (folder / "manifest.json").unlink()
    _write_manifest(folder)


def take_out(folder: Path) -> None:
    """Remove an adapter or a checkpoint as somebody does who wants to do without it."""
    shutil.rmtree(folder)
    (folder.parent.parent / "contents.json").unlink(missing_ok=True)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
