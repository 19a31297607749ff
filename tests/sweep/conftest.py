"""What the tests of sweeps share: a small grid on the embedded digits, and its bases."""

import shutil
from pathlib import Path

import pytest

from lora_mnist.settings.request import Request
from lora_mnist.sweep.grid import Job, parse_axes
from lora_mnist.sweep.jobs import SweepContext
from lora_mnist.sweep.rows import Row
from lora_mnist.sweep.sweep import SweepRequest, open_context

SMALL = {
    "data": {"dataset": "mnist-5k"},
    "model": {"hidden": [24, 16]},
    "pretrain": {"epochs": 3},
    "finetune": {"steps": 20, "batch_size": 10, "learning_rate": 0.01},
}


def request_of(out: Path, digits="3,8", ranks="1,2", seeds="0-1", settings=(), **more) -> SweepRequest:
    """A sweep of seconds."""
    return SweepRequest(Request(options=SMALL, threads=1), parse_axes(digits, ranks, seeds, settings), out, **more)


def opened(out: Path, *grid, **more) -> tuple[SweepContext, list[Job]]:
    """Its context and jobs; the bases are made below `out`."""
    request = request_of(out, *grid, **more)
    return open_context(request, request.jobs())


def same(one: Row, other: Row) -> bool:
    """Whether two rows say the same, however they came about."""
    return one.model_copy(update={"seconds": other.seconds, "engine": other.engine}) == other


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """(folder with its bases, context, eight jobs): digits 3 and 8, ranks 1 and 2, seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("small")
    return folder, *opened(folder)


@pytest.fixture
def folder(small, tmp_path):
    """The folder of a sweep whose bases are made already."""
    shutil.copytree(small[0] / "bases", tmp_path / "bases")
    return tmp_path
