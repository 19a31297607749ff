"""Downloads from servers on this machine: a good one, a silent one, a dripping one, one with other bytes."""

import gzip
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lora_mnist.datasets import mnist as files
from lora_mnist.datasets.dataset import choose, load
from lora_mnist.datasets.download import fetch_mnist
from lora_mnist.datasets.mnist import MNIST_FILES
from lora_mnist.errors import DataError

# The published train-images .gz: torchvision checks its md5, and a copy packed anew has another gzip header.
TRAIN_IMAGES_HEADER = b"\x1f\x8b\x08\x08\x7a\x82\x90\x32\x00\x03train-images.idx3-ubyte\x00"


@pytest.fixture
def serve():
    """Start a server that answers every GET by `answer(handler)`; returns its URL."""
    servers = []
    over = threading.Event()

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.over = over
                answer(self)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    over.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def silent(handler):
    handler.over.wait(60)


def dripping(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "9912422")
    handler.end_headers()
    while not handler.over.wait(0.05):
        try:
            handler.wfile.write(b"x")
        except OSError:
            return


def not_mnist(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(gzip.compress(b"something else"))


@pytest.mark.parametrize("answer", [silent, dripping])
def test_a_silent_or_dripping_server_ends_at_the_deadline(serve, tmp_path, answer):
    started = time.monotonic()
    with pytest.raises(OSError, match="too slow"):
        fetch_mnist(tmp_path, list(MNIST_FILES), deadline=4, mirrors=[serve(answer)])
    assert time.monotonic() - started < 20
    assert os.listdir(tmp_path) == []


def test_other_bytes_are_refused_and_leave_nothing(serve, tmp_path, monkeypatch):
    url = serve(not_mnist)
    monkeypatch.setattr(files, "fetch_mnist", lambda *args, **kwargs: fetch_mnist(*args[:3], [url]))
    with pytest.raises(DataError, match="could not be downloaded"):
        choose("mnist", tmp_path)
    assert os.listdir(tmp_path / "MNIST" / "raw") == []


def test_a_good_server_brings_the_published_files(serve, mnist, tmp_path, monkeypatch):
    def good(handler):
        path = mnist / "MNIST" / "raw" / handler.path.lstrip("/")
        if not path.is_file():
            pytest.skip(f"{path} is not here to be served")
        packed = path.read_bytes()
        if packed[3] == 0:
            packed = TRAIN_IMAGES_HEADER + packed[10:]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(packed)))
        handler.end_headers()
        handler.wfile.write(packed)

    url = serve(good)
    monkeypatch.setattr(files, "fetch_mnist", lambda *args, **kwargs: fetch_mnist(*args[:3], [url]))
    assert choose("mnist", tmp_path) == "mnist"
    assert sorted(os.listdir(tmp_path / "MNIST" / "raw")) == sorted(MNIST_FILES)
    assert os.listdir(tmp_path) == ["MNIST"]
    assert len(load("mnist", tmp_path, 0.0, 0).train) == 60_000


def test_torchvision_can_be_imported_beside_any_torch():
    program = (
        "from lora_mnist.datasets.download import import_torchvision\n"
        "import_torchvision()\n"
        "import torchvision.datasets, torchvision.transforms\n"
        "print(torchvision.datasets.MNIST.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "MNIST\n"), done.stderr
