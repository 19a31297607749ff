"""Seconds until the playground has sent its page, and of a whole lesson.

python benchmarks/play.py [--run DIR] [--data DIR] [--rounds 3] [--threads 1] [--out build/bench]

A lesson is 30 test images turned by 30 degrees, from Teach to verdict; its process is ready, as it is when a person has
drawn. Without --run, a base and an adapter of 100 steps are trained first. What a stroke takes, which the page computes
itself, `page.py` measures.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

from timing import finish, machine

LESSON, TURN = 30, 30  # drawings, degrees


class Playground:
    """`lora-mnist play` as its own process, and a client of it."""

    def __init__(self, arguments: Namespace):
        command = [
            sys.executable,
            "-m",
            "lora_mnist",
            "play",
            "--run",
            str(arguments.run),
            "--data",
            str(arguments.data),
        ]
        command += ["--port", "0", "--quiet", "--threads", str(arguments.threads)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self._port = int(self.process.stdout.readline().rstrip("/\n").rpartition(":")[2])
        self._connection = HTTPConnection("127.0.0.1", self._port)

    def ask(self, path: str, body: object = None) -> dict:
        """The answer to a question."""
        sent = None if body is None else json.dumps(body)
        self._connection.request("POST" if sent else "GET", path, sent, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise SystemExit(answer["error"]["message"])
        return answer

    def page(self) -> None:
        """Read the whole page."""
        self._connection.request("GET", "/")
        self._connection.getresponse().read()

    def wait(self, is_reached: Callable[[dict], bool]) -> None:
        """Until the lesson stands so."""
        events = HTTPConnection("127.0.0.1", self._port)
        events.request("GET", "/api/teaching")
        for line in events.getresponse():
            if line.startswith(b"data: ") and is_reached(json.loads(line[6:])):
                events.close()
                return


def lesson(data: Path) -> dict:
    """Thirty test images, turned."""
    import torch

    from lora_mnist.datasets.mnist import read_mnist
    from lora_mnist.training.augment import warp

    _, _, images, labels = read_mnist(data)
    warps = torch.tensor([[TURN / 57.29578, 1.0, 0.0, 0.0]] * LESSON)
    turned = warp(torch.tensor(images[:LESSON]).float(), warps).round().clamp(0, 255).byte()
    return {
        "drawings": [
            {"pixels": image.numpy().tobytes().hex(), "label": int(label)}
            for image, label in zip(turned, labels, strict=False)
        ]
    }


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LORA_MNIST_DATA", "data")))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.run is None:
            arguments.run = Path(folder) / "run"
            train(arguments)
        measure(arguments)


def train(arguments: Namespace) -> None:
    """A run to play with."""
    where = ["--run", str(arguments.run), "--data", str(arguments.data), "--quiet"]
    for command in (
        ["pretrain", "--dataset", "mnist"],
        ["finetune", "--digit", "9", "--steps", "100", "--guard", "none"],
    ):
        subprocess.run([sys.executable, "-m", "lora_mnist", *command, *where], check=True, stdout=subprocess.DEVNULL)


def measure(arguments: Namespace) -> None:
    """All of it."""
    about = machine(arguments.threads)
    drawings = lesson(arguments.data)
    playground = Playground(arguments)
    try:
        pages, seconds = [], []
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            playground.page()
            pages.append(time.perf_counter() - started)
        for _ in range(arguments.rounds):
            playground.ask("/api/teaching/ready", {})
            time.sleep(8)  # a person draws for longer
            seconds.append(timed(playground, drawings))
        rows = [row("the page is there", "s", pages, 1), row(f"a lesson of {LESSON} drawings", "s", seconds, 10)]
    finally:
        playground.process.terminate()
        playground.process.wait()
    finish("play", rows, arguments.out, about)


def timed(playground: Playground, drawings: dict) -> float:
    """Seconds from Teach to the verdict."""
    started = time.perf_counter()
    playground.ask("/api/teaching/start", drawings)
    playground.wait(lambda state: state["phase"] == "taught")
    seconds = time.perf_counter() - started
    playground.ask("/api/teaching/discard", {})
    return seconds


def row(name: str, unit: str, times: list[float], target: float) -> dict:
    """Of the table."""
    tenth = sorted(times)[-max(len(times) // 10, 1)]
    return {
        "until": name,
        "unit": unit,
        "times": len(times),
        "median": statistics.median(times),
        "90th percentile": tenth,
        "target": target,
    }


if __name__ == "__main__":
    main()
