"""A playground that serves a copy of the finished run, and a client for it."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from lora_mnist.pipeline import Request
from lora_mnist.play.server import Server
from lora_mnist.play.teaching import Teacher

from ..browser.conftest import run as run  # a fixture


class Client:
    """Sends requests to a playground on this machine, each over a new connection."""

    def __init__(self, port: int, run: Path, teacher: Teacher | None = None):
        self.port, self.run, self.teacher = port, run, teacher
        self.address = f"http://127.0.0.1:{port}/"

    def ask(self, path: str, body: object = None, headers: dict | None = None):
        """(status, headers, body as JSON or bytes) of a GET, or with a body of a POST."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = json.dumps(body).encode() if isinstance(body, dict) else body
        kind = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request("GET" if body is None else "POST", path, sent, kind | (headers or {}))
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = response.headers["Content-Type"] == "application/json"
        return response.status, response.headers, json.loads(content) if is_json else content

    def state_in(self, *phases: str) -> dict:
        """Follow the lesson until it is in one of these phases."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/api/teaching")
        with connection.getresponse() as events:
            state = {"phase": None}
            while state["phase"] not in phases:
                line = events.readline()
                assert line, "the stream has ended"
                if line.startswith(b"data: "):
                    state = json.loads(line.removeprefix(b"data: "))
        connection.close()
        return state


@contextmanager
def serving(run: Path, **teach: object) -> Iterator[Client]:
    """A playground in a thread of this process; `teach` are settings of its lessons."""
    with Server(Request(run=run, threads=1, options={"teach": teach}), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Client(server.server_address[1], run, server.teacher)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def client(finished_run, tmp_path_factory) -> Iterator[Client]:
    """A playground on a copy of the finished run, one for a file of tests that leave the run alone."""
    with serving(Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("play") / "run"))) as client:
        yield client
