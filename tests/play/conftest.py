"""A playground that serves a copy of the finished run, and a client for it."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from lora_mnist.evaluation.verdict import LessonResult, OnVal, Unseen
from lora_mnist.pipeline import Request
from lora_mnist.play.serve import listening, make_server
from lora_mnist.play.teaching import Teacher
from lora_mnist.training.progress import Step

PRICE = LessonResult(
    drawings=(2,) * 10,
    before=14,
    after=20,
    unseen=Unseen(images=20, before=14, after=19, fixed=6, broken=1, folds=3, steps=10),
    val=OnVal(images=500, before=20, after=23, fixed=(0,) * 10, broken=(3, *(0,) * 9)),
    scale=0.8,
)
STEP = Step(step=3, steps=80, loss=1.25, seconds_left=2.0)
NINE = [[[620, 380], [500, 280], [380, 360], [380, 480], [500, 520], [600, 460], [630, 360]], [[630, 360], [580, 820]]]


class Client:
    """Asks a playground on this machine, each time by a new connection."""

    def __init__(self, port: int, run: Path, teacher: Teacher):
        self.port, self.run, self.teacher = port, run, teacher

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path: str, body: object = None, headers: dict | None = None, method: str = ""):
        """(status, headers, body as JSON or bytes) of a GET, or with a body of a POST."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = json.dumps(body).encode() if isinstance(body, dict) else body
        kind = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, sent, kind | (headers or {}))
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = response.headers["Content-Type"] == "application/json"
        return response.status, response.headers, json.loads(content) if is_json else content

    def predict(self, **question: object) -> dict:
        status, _, answer = self.ask("/api/predict", question)
        assert status == 200, answer
        return answer

    def states(self, until: set[str]) -> list[dict]:
        """How the teaching stands, one event after the other, until it is in one of these phases."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/api/teaching")
        heard: list[dict] = []
        with connection.getresponse() as events:
            while not heard or heard[-1]["phase"] not in until:
                line = events.readline()
                assert line, "the stream has ended"
                if line.startswith(b"data: "):
                    heard.append(json.loads(line.removeprefix(b"data: ")))
        connection.close()
        return heard


@contextmanager
def serving(run: Path, **teach: object) -> Iterator[Client]:
    """A playground in a thread of this process; `teach` are settings of its lessons."""
    listener = listening(0)
    server = make_server(Request(run=run, threads=1, options={"teach": teach}))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Client(listener.getsockname()[1], run, server.teacher)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(finished_run, tmp_path_factory) -> Iterator[Client]:
    """A playground on a copy of the finished run, one for a file of tests that leave the run alone."""
    with serving(Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("play") / "run"))) as client:
        yield client
