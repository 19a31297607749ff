"""Downloads through torchvision, from servers on this machine: good, silent, failing, and with other bytes."""

import builtins
import errno
import gc
import gzip
import hashlib
import os
import socket
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lora_mnist.datasets import mnist as files
from lora_mnist.datasets.dataset import choose_dataset, load
from lora_mnist.datasets.mnist import MNIST_FILES, import_torchvision
from lora_mnist.errors import DataError, DiskError


@pytest.fixture
def mirrors(monkeypatch):
    """Start a server for each function `answer(handler)`, and have torchvision use these as its mirrors, in order."""
    servers, over = [], threading.Event()

    def start(*answers):
        urls = []
        for answer in answers:
            methods = {"do_GET": answer, "over": over, "log_message": lambda *_: None}
            server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (BaseHTTPRequestHandler,), methods))
            server.daemon_threads = False  # closing it waits for its answers
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # seconds to its end
            servers.append(server)
            urls.append(f"http://127.0.0.1:{server.server_port}/")
        import_torchvision()
        from torchvision.datasets import MNIST

        monkeypatch.setattr(MNIST, "mirrors", urls)

    yield start
    over.set()
    for server in servers:
        server.shutdown()
        server.server_close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # torchvision leaves the answer of a failed request open
        gc.collect()


@pytest.fixture(scope="module")
def packed(mnist) -> dict[str, bytes]:
    """The four files, packed."""
    found = {}
    for name in MNIST_FILES:
        path = mnist / "MNIST" / "raw" / name
        content = path.read_bytes() if path.is_file() else gzip.decompress(Path(f"{path}.gz").read_bytes())
        found[f"{name}.gz"] = gzip.compress(content, 1)
    return found


@pytest.fixture
def good(packed, monkeypatch):
    """A mirror that has them. They are packed here, so torchvision has to be told their md5."""
    import_torchvision()
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "resources", [(name, hashlib.md5(part).hexdigest()) for name, part in packed.items()])
    return lambda handler: send(handler, packed[handler.path[1:]])


def send(handler, content):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def other_bytes(handler):
    send(handler, gzip.compress(b"something else"))


def absent(handler):
    handler.send_error(404)


def silent(handler):
    handler.over.wait(60)


def breaks_off(handler):
    """Announce a megabyte, send a part of it, and end the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.wfile.write(b"\x1f\x8b" + bytes(100_000))


def test_a_good_mirror_brings_the_published_files(mirrors, good, tmp_path, capfd):
    mirrors(good)
    assert choose_dataset("mnist", tmp_path) == "mnist"
    assert sorted(os.listdir(tmp_path / "MNIST" / "raw")) == sorted(MNIST_FILES)
    assert os.listdir(tmp_path) == ["MNIST"]
    assert len(load("mnist", tmp_path, 0.0, 0).train) == 60_000
    assert capfd.readouterr() == ("", "")  # no bar of torchvision's where there is no terminal


@pytest.mark.parametrize("first", [absent, silent, breaks_off, other_bytes])
def test_the_next_mirror_is_tried_after_one_that_fails_or_stalls(mirrors, good, tmp_path, monkeypatch, first):
    monkeypatch.setattr(files, "SILENCE", 0.5)
    mirrors(first, good)
    before, started = socket.getdefaulttimeout(), time.monotonic()
    assert choose_dataset("mnist", tmp_path) == "mnist"
    assert time.monotonic() - started < 30
    assert len(load("mnist", tmp_path, 0.0, 0).test) == 10_000
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize(("answer", "why"), [(absent, "404"), (silent, "timed out"), (other_bytes, "corrupted")])
def test_without_a_good_mirror_the_reason_is_given_and_nothing_is_left(mirrors, tmp_path, monkeypatch, answer, why):
    monkeypatch.setattr(files, "SILENCE", 0.5)
    mirrors(answer, answer)
    with pytest.raises(DataError, match=why):
        choose_dataset("mnist", tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_torchvision_takes_for_mnist_is_checked_by_sha256(mirrors, tmp_path, monkeypatch):
    """An archive with other content whose md5 torchvision was made to accept."""
    mirrors(absent)
    from torchvision.datasets import MNIST

    labels = gzip.compress(np.array([0x801, 1], ">u4").tobytes() + b"\x07")
    images = gzip.compress(np.array([0x803, 1, 28, 28], ">u4").tobytes() + bytes(784))
    packed = {name: images if "images" in name else labels for name in MNIST_FILES}
    resources = [(f"{name}.gz", hashlib.md5(packed[name]).hexdigest()) for name in MNIST_FILES]
    monkeypatch.setattr(MNIST, "resources", resources)
    mirrors(lambda handler: send(handler, packed[handler.path[1:-3]]))
    with pytest.raises(DataError, match="SHA-256 differs"):
        choose_dataset("mnist", tmp_path)
    assert os.listdir(tmp_path) == []


def test_files_that_are_there_stay_and_old_leftovers_go(mirrors, good, mnist, tmp_path):
    raw, name = tmp_path / "MNIST" / "raw", "t10k-labels-idx1-ubyte"
    raw.mkdir(parents=True)
    (raw / name).write_bytes(b"the user's own")
    for left, age in ((".download-old", 2 * files.ABANDONED), (".download-running", 0.0)):
        (tmp_path / left).mkdir()
        os.utime(tmp_path / left, (time.time() - age,) * 2)
    mirrors(good)
    assert choose_dataset("mnist", tmp_path) == "mnist"
    assert (raw / name).read_bytes() == b"the user's own"
    assert sorted(os.listdir(tmp_path)) == [".download-running", "MNIST"]


def test_a_full_disk_is_the_disks_fault(mirrors, good, tmp_path, monkeypatch):
    mirrors(good)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(DiskError, match="No space left"):
        choose_dataset("mnist", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_the_disks_fault(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        choose_dataset("mnist", tmp_path / "file" / "data")
    assert choose_dataset("auto", tmp_path / "file" / "data") == "mnist-5k"


def test_what_auto_says_is_one_line_without_addresses(mirrors, tmp_path, caplog):
    mirrors(absent)
    assert choose_dataset("auto", tmp_path) == "mnist-5k"
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert line.endswith("Using mnist-5k, 5,000 of its images.")
    assert "404" in line
    assert "http" not in line
    with pytest.raises(DataError) as caught:
        choose_dataset("mnist", tmp_path)
    assert "http" in caught.value.way_out


# --offline ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was used"))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("by_variable", [False, True])
def test_offline_nothing_is_downloaded(cli, tmp_path, monkeypatch, by_variable):
    option = [] if by_variable else ["--offline"]
    if by_variable:
        monkeypatch.setenv("LORA_MNIST_OFFLINE", "1")
    options = ("--config", "smoke", "--data", tmp_path / "data", *option)
    code, _, err = cli("pretrain", "--dataset", "mnist", "--run", tmp_path / "r", *options)
    assert (code, "offline" in err) == (3, True)
    code, out, err = cli("pretrain", "--run", tmp_path / "r", *options)
    assert (code, "offline" in err, "5,000 of its images" in err) == (0, True, True)
    assert "mnist-5k" in out
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("no_network")
def test_the_embedded_digits_need_neither_disk_nor_network(cli, run_copy, tmp_path):
    assert choose_dataset("mnist-5k", tmp_path / "absent") == "mnist-5k"
    assert not (tmp_path / "absent").exists()
    code, _, err = cli("evaluate", "--run", run_copy)
    assert (code, err) == (0, "")


# torchvision ----------------------------------------------------------------------------------------------------------


def test_another_error_of_torchvision_is_not_hidden(monkeypatch):
    honest = builtins.__import__

    def refuse(name, *rest, **named):
        if name == "torchvision":
            raise RuntimeError("another one")
        return honest(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RuntimeError, match="another one"):
        import_torchvision()
