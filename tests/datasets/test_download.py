"""Downloads in a process of their own, from servers on this machine: good, silent, dripping, and with other bytes."""

import errno
import gzip
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

from lora_mnist.datasets import mnist as files
from lora_mnist.datasets.dataset import choose, load
from lora_mnist.datasets.download import FOLDER, fetch_mnist
from lora_mnist.datasets.published import MNIST_FILES
from lora_mnist.errors import DataError, DiskError

from .conftest import send


def silent(handler):
    handler.over.wait(60)


def dripping(handler):
    """A byte now and then, of a file that begins as it should."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(gzip.compress(b"x")[:10])
    while not handler.over.wait(0.05):
        try:
            handler.wfile.write(b"\0\0\0\xff\xff")
        except OSError:
            return


def not_mnist(handler):
    send(handler, gzip.compress(b"something else"))


@pytest.fixture
def packed(mnist):
    """The four files as a mirror has them, by their paths."""
    raw = mnist / "MNIST" / "raw"
    paths = {name: raw / f"{name}.gz" for name in MNIST_FILES}
    return {
        f"/{name}.gz": path.read_bytes() if path.is_file() else gzip.compress((raw / name).read_bytes(), 1)
        for name, path in paths.items()
    }


@pytest.fixture
def through(monkeypatch):
    """Let every download go to this server."""

    def redirect(url):
        monkeypatch.setattr(files, "fetch_mnist", lambda *args, **kwargs: fetch_mnist(*args[:2], [url]))

    return redirect


@pytest.mark.parametrize("answer", [silent, dripping])
def test_a_silent_or_dripping_server_ends_at_the_deadline(serve, tmp_path, answer):
    started = time.monotonic()
    with pytest.raises(OSError, match="too slow"), fetch_mnist(tmp_path, deadline=4, mirrors=[serve(answer)]):
        pass
    assert time.monotonic() - started < 20
    assert len(os.listdir(tmp_path)) == (answer is dripping)  # what came stays for the next time


def test_other_bytes_are_refused_and_leave_nothing(serve, tmp_path, through):
    through(serve(not_mnist))
    with pytest.raises(DataError, match="could not be downloaded"):
        choose("mnist", tmp_path)
    assert os.listdir(tmp_path / "MNIST" / "raw") == []
    assert os.listdir(tmp_path) == ["MNIST"]


def test_a_good_server_brings_the_published_files(serve, packed, tmp_path, through):
    through(serve(lambda handler: send(handler, packed[handler.path])))
    assert choose("mnist", tmp_path) == "mnist"
    assert sorted(os.listdir(tmp_path / "MNIST" / "raw")) == sorted(MNIST_FILES)
    assert os.listdir(tmp_path) == ["MNIST"]
    assert len(load("mnist", tmp_path, 0.0, 0).train) == 60_000


def test_a_killed_download_ends_its_child_and_is_gone_on_with(serve, packed, tmp_path, through):
    begins = []

    def stalling(handler):
        """Half of the first file, and then nothing; whoever comes for the rest gets it."""
        begins.append(handler.headers.get("Range"))
        send(handler, packed[handler.path], until=None if begins[1:] else 5_000_000)
        if not begins[1:]:
            handler.over.wait(60)

    url = serve(stalling)
    program = (
        "import sys\nfrom pathlib import Path\nfrom lora_mnist.datasets.download import fetch_mnist\n"
        "with fetch_mnist(Path(sys.argv[1]), 60, [sys.argv[2]], quiet=True): pass"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path, url]) as command:
        while sum(file.stat().st_size for file in tmp_path.rglob("*.gz")) < 5_000_000:
            assert command.poll() is None
            time.sleep(0.05)
        children = _children(command.pid)
        assert children
        command.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(_is_alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    through(url)
    assert choose("mnist", tmp_path) == "mnist"
    assert begins[1] == "bytes=5000000-"
    assert os.listdir(tmp_path) == ["MNIST"]


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_downloads_at_once_do_not_meet(serve, packed, tmp_path):
    url = serve(lambda handler: send(handler, packed[handler.path]))
    both, found = threading.Barrier(2, timeout=60), []

    def download():
        with fetch_mnist(tmp_path, 60, [url], quiet=True) as folder:
            both.wait()  # both are done, and neither is gone
            found.append((folder, {file.name: file.stat().st_size for file in folder.glob("*.gz")}))

    threads = [threading.Thread(target=download) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one, sizes), (other, same) = found
    assert one != other
    assert sizes == same == {path[1:]: len(content) for path, content in packed.items()}
    assert os.listdir(tmp_path) == []


def test_what_several_killed_downloads_left_is_cleared(serve, packed, tmp_path):
    for i in range(3):
        (tmp_path / f"{FOLDER}{i}").mkdir()
        (tmp_path / f"{FOLDER}{i}" / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / f"{FOLDER}x").write_text("not a folder")
    with fetch_mnist(tmp_path, 60, [serve(lambda handler: send(handler, packed[handler.path]))], quiet=True):
        pass
    assert os.listdir(tmp_path) == [f"{FOLDER}x"]


def test_a_folder_that_another_download_takes_first_is_left_to_it(serve, packed, tmp_path, monkeypatch):
    provenance, honest = [], tempfile.mkdtemp

    def taken_at_once(**named):
        provenance.append(honest(**named))
        if not provenance[1:]:
            locks.enter_context(FileLock(Path(provenance[0]) / "lock"))
        return provenance[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", taken_at_once)
    url = serve(lambda handler: send(handler, packed[handler.path]))
    with ExitStack() as locks, fetch_mnist(tmp_path, 60, [url], quiet=True) as folder:
        assert str(folder) == provenance[1]


def test_a_place_that_cannot_be_filled_is_the_disks_fault(serve, packed, tmp_path, through, monkeypatch):
    through(serve(lambda handler: send(handler, packed[handler.path])))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(DiskError, match="No space left"):
        choose("mnist", tmp_path)
    monkeypatch.undo()
    begins = []
    monkeypatch.setattr(files, "fetch_mnist", lambda *args, **kwargs: fetch_mnist(*args[:2], [serve(begins.append)]))
    assert choose("mnist", tmp_path) == "mnist"  # what came is there still, and nothing is asked for
    assert begins == []


# --offline ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    """No socket may be opened, and no program started that could."""

    def refuse(*_, **__):
        pytest.fail("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("by_variable", [False, True])
def test_offline_nothing_is_fetched(cli, tmp_path, monkeypatch, by_variable):
    option = [] if by_variable else ["--offline"]
    if by_variable:
        monkeypatch.setenv("LORA_MNIST_OFFLINE", "1")
    options = ("--config", "smoke", "--data", tmp_path / "data", *option)
    code, _, err = cli("pretrain", "--dataset", "mnist", "--run", tmp_path / "r", *options)
    assert (code, "offline" in err) == (3, True)
    code, out, err = cli("pretrain", "--run", tmp_path / "r", *options)
    assert (code, "offline" in err, "1,797 digits" in err) == (0, True, True)
    assert "not MNIST" in out
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("no_network")
def test_offline_a_run_whose_data_are_gone_is_told(cli, run_copy, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_mnist.datasets.dataset.is_there", lambda folder: False)
    code, _, err = cli("evaluate", "--run", run_copy, "--offline")
    assert (code, err) == (0, "")  # the digits are always there
    assert choose("digits", tmp_path, offline=True) == "digits"


def test_without_offline_the_network_is_tried(cli, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(files, "fetch_mnist", lambda *_, **__: tried.append(1) or exec("raise OSError('none')"))
    assert cli("pretrain", "--dataset", "mnist", "--data", tmp_path, "--run", tmp_path / "r")[0] == 3
    assert tried
