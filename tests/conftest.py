"""What several tests share: a small finished run on the embedded digits, real MNIST where it lies, the command line."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from lora_mnist.cli.commands import main
from lora_mnist.datasets.mnist import MNIST_FILES
from lora_mnist.pipeline import finetune as tuning
from lora_mnist.pipeline import stages
from lora_mnist.settings.request import Request
from lora_mnist.training.device import prepare

prepare("cpu")  # as every command does before it computes: some of it only takes effect then

SMOKE = {"data": {"dataset": "digits"}}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A run with a base and one adapter; never changed, copy it with `run_copy`."""
    path = tmp_path_factory.mktemp("finished") / "run"
    stages.pretrain(Request(run=path, config="smoke", options=SMOKE))
    tuning.finetune(Request(run=path))
    return path


@pytest.fixture
def run_copy(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def adapter(run_copy) -> Path:
    """The one adapter's folder in `run_copy`."""
    return next((run_copy / "adapters").iterdir())


def resume(request: Request) -> dict:
    """What `lora-mnist run` does before it verifies and reports."""
    stages.pretrain(request, resume=True)
    return tuning.finetune(request, resume=True)


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


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
