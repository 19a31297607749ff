"""What several tests share: a small finished run on the embedded digits, real MNIST where it lies, the command line."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_mnist.cli.errors import LINES
from lora_mnist.cli.main import main
from lora_mnist.datasets.dataset import load
from lora_mnist.datasets.drawings import Drawings
from lora_mnist.datasets.mnist import MNIST_FILES
from lora_mnist.datasets.preprocess import prepare as prepare_drawing
from lora_mnist.errors import LONGEST, LoraMnistError
from lora_mnist.pipeline import FinetuneResult, Request, Workspace, finetune, open_workspace, pretrain
from lora_mnist.runs.atomic import MANIFEST, manifest_of, sha256_of
from lora_mnist.training.device import prepare_device

from .faults.tally import ALL, Tally

prepare_device("cpu")  # as a command does before it computes: some of it only takes effect then

LONG = (  # files that take longest, in that order
    *("test_claims", "test_readme", "test_engines", "test_interruptions", "test_cli", "test_browser"),
    *("test_playground", "test_page", "test_damage", "test_server", "test_download", "test_verify", "test_teach"),
    *("test_one_file", "test_notebook"),
)


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
    return Request(run=path, config="smoke", options={"data": {"dataset": "mnist-5k"}, **options})


def resume(request: Request) -> FinetuneResult:
    """What `lora-mnist run` does before it verifies and reports."""
    work, _ = pretrain(request, resume=True)
    return finetune(work, resume=True)


@pytest.fixture(scope="session")
def tally():
    """How many attacks were tried, for docs/trust.md."""
    tally = Tally()
    yield tally
    if ALL:
        tally.keep()


@cache
def drawings_of(name: str, each: int = 3, split: str = "val") -> Drawings:
    """The first images of every digit of a data set, prepared as drawings are."""
    part = getattr(load(name, Path("data"), 0.25, 0), split)
    which = torch.cat([(part.labels == digit).nonzero()[:each, 0] for digit in range(10)])
    images = [torch.from_numpy(prepare_drawing(image.numpy())) for image in part.images[which]]
    return Drawings(torch.stack(images), part.labels[which])


def write_drawings(folder: Path, drawings: Drawings) -> Path:
    """As PNGs, each below its digit."""
    for number, (image, label) in enumerate(zip(drawings.images, drawings.labels.tolist(), strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place / f"{number:03}.png")
    return folder


@pytest.fixture(scope="session")
def mnist() -> Path:
    """The folder with real MNIST in its MNIST/raw/."""
    folder = Path(os.environ.get("LORA_MNIST_DATA", "data"))
    raw = folder / "MNIST" / "raw"
    if not all((raw / name).is_file() or (raw / f"{name}.gz").is_file() for name in MNIST_FILES):
        pytest.skip(f"MNIST is not in {raw}; set LORA_MNIST_DATA to run this")
    return folder


@pytest.fixture(autouse=True)
def _same_process():
    """A command sets for the process how many threads there are, what is logged where, and what a signal does."""
    log = logging.getLogger("lora_mnist")
    threads, logged = torch.get_num_threads(), (log.level, log.propagate, log.handlers[:])
    handlers = {number: signal.getsignal(number) for number in LINES}
    yield
    torch.set_num_threads(threads)
    log.setLevel(logged[0])
    log.propagate, log.handlers[:] = logged[1:]
    for number, handler in handlers.items():
        signal.signal(number, handler)


def is_cause_and_way_out(cause: str, way_out: str) -> bool:
    """Each ends as a sentence does; the way out, which quotes little, begins as one too and is not shouted."""
    return cause.endswith(".") and re.fullmatch(r"(?![a-z]+ ).*[a-z]{2}.*[.]", way_out, re.DOTALL) is not None


@pytest.fixture(autouse=True)
def _every_error_is_a_cause_and_a_way_out(monkeypatch):
    """As errors.py promises, of every error that any test meets."""
    raised, honest = [], LoraMnistError.__init__

    def init(self: LoraMnistError, cause: str, way_out: str) -> None:
        honest(self, cause, way_out)
        raised.append((cause, way_out))

    monkeypatch.setattr(LoraMnistError, "__init__", init)
    yield
    assert [one for one in raised if not is_cause_and_way_out(*one)] == []


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run a command in this process: (exit code, standard output, standard error). It leaves signals to the suite."""
    monkeypatch.setattr("lora_mnist.cli.main.handle_signals", lambda: None)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def succeeds(cli):
    """Run a command that has to end well, with `err` on standard error if that is given: its standard output."""

    def call(*arguments: object, err: str | None = None) -> str:
        code, out, notes = cli(*arguments)
        assert code == 0, notes
        assert err in (None, notes)
        return out

    return call


@pytest.fixture
def fails(cli):
    """Run a command that has to end with `code`, or one of several, and one printable line: that line."""

    def call(code: int | tuple[int, ...], *arguments: object, says: str = "") -> str:
        found, out, err = cli(*arguments)
        assert found in (code if isinstance(code, tuple) else (code,)), err
        assert out == "" or arguments[0] == "verify"  # which says first what it found
        assert says in err
        assert len(err) <= LONGEST + 10
        assert err.rstrip("\n").isprintable()
        return err

    return call


def lora_mnist(*arguments: object, python: tuple[str, ...] = (), **options: Any) -> subprocess.CompletedProcess:
    """The command as its own process."""
    command = [sys.executable, *python, "-m", "lora_mnist", *map(str, arguments)]
    return subprocess.run(command, **{"capture_output": True, "text": True, "check": False} | options)


def printed_by(program: str, **environment: str) -> str:
    """What a program of Python prints in a process of its own, which has to end well."""
    options = {"env": os.environ | environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", program], **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pytest_collection_modifyitems(items):
    """Files that take minutes first, so that at the end no process waits for another."""
    turn = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: turn.get(item.path.stem, len(LONG)))


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
    (folder / MANIFEST).unlink(missing_ok=True)
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    (folder / MANIFEST).write_bytes(manifest_of({name: sha256_of(folder / name) for name in names}))


@contextmanager
def edited(path: Path) -> Iterator[Any]:
    """A JSON document, to be changed in place, and its manifest with it."""
    document = json.loads(path.read_text())
    yield document
    path.write_text(json.dumps(document))
    rehash(path.parent)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def browser():
    """A browser that is installed already; the tests that ask for it say so where none is."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(names)}")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


def serious(page) -> dict[str, str]:
    """What axe finds seriously wrong with a page in a browser: rules, each with the first element that breaks it."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return {one["id"]: one["nodes"][0]["html"] for one in found if one["impact"] in ("serious", "critical")}
