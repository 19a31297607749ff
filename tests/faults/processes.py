"""Commands in processes of their own that start at once: each is forked from one that has imported everything."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from .disk import Disk, Fault

PATIENCE = 120  # seconds after which a command counts as hanging
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.warm"])
_starting = threading.Lock()  # a start looks for processes that have ended; of two that look at once, one sees 255


@dataclass(frozen=True)
class Ended:
    """How a command ended: `code` is negative where a signal did it, as -9, and then there is nothing else."""

    code: int
    out: str = ""
    err: str = ""
    operations: tuple[str, ...] = ()


def command(*arguments: object, folder: Path | None = None, fault: Fault | None = None) -> Ended:
    """Run one command; what it does below `folder` is counted, and suffers `fault`."""
    return _Running([arguments], folder, fault).ended()[0]


def commands(*lines: Sequence[object]) -> list[Ended]:
    """Run commands one after the other, in one process. Those after one that is ended by a signal are left out."""
    return _Running(lines).ended()


def at_once(*lines: Sequence[object], apart: float = 0, unguarded: bool = False) -> list[Ended]:
    """Run commands at the same time.

    Args:
        apart: seconds by which each begins later than the one before it.
        unguarded: without the lock, and without the second look where there are no locks.
    """
    gate = _context.Event()
    running = [_Running([line], gate=gate, late=i * apart, unguarded=unguarded) for i, line in enumerate(lines)]
    for one in running:
        one.await_ready()
    gate.set()
    return [one.ended()[0] for one in running]


def killed_after(seconds: float, *arguments: object) -> Ended:
    """Run one command, and kill it so many seconds after it began."""
    running = _Running([arguments])
    running.await_ready()
    time.sleep(seconds)
    running.process.kill()
    return running.ended()[0]


def interrupted_after(seconds: float, number: signal.Signals, *arguments: object) -> Ended:
    """Start Python with one command, and send a signal to all its processes so many seconds later."""
    line = [sys.executable, "-m", "lora_mnist", *map(str, arguments)]
    plain = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a background job inherits it ignored
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=plain
    ) as process:
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out, err)


class _Running:
    def __init__(self, lines, folder=None, fault=None, gate=None, late=0.0, unguarded=False):
        self.lines = [[str(word) for word in line] for line in lines]
        self.results, child = _context.Pipe(duplex=False)
        job = (child, self.lines, folder, fault, gate, late, unguarded)
        self.process = _context.Process(target=_work, args=job, daemon=True)
        with _starting:
            self.process.start()
        child.close()

    def await_ready(self) -> None:
        assert self.results.recv() is None

    def ended(self) -> list[Ended]:
        ended: list[Ended] = []
        try:
            while len(ended) < len(self.lines):
                if result := self.results.recv():
                    ended.append(result)
        except EOFError:
            pass
        connection.wait([self.process.sentinel])
        with _starting:
            self.process.join()
        code = self.process.exitcode
        assert code != -signal.SIGALRM, f"it hangs: {self.lines[len(ended)]}"
        if len(ended) < len(self.lines):
            assert code < 0, f"it ended without a result, with {code}"
            ended.append(Ended(code))
        self.results.close()
        self.process.close()
        return ended


def _work(results, lines, folder, fault, gate, late, unguarded) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if unguarded:
        _drop_the_guards()
    results.send(None)
    if gate is not None:
        gate.wait()
        time.sleep(late)
    for line in lines:
        signal.alarm(PATIENCE)
        results.send(_one(line, folder, fault))
    results.close()
    os._exit(0)  # nothing of what was imported is to be taken down


def _one(line: Sequence[str], folder: Path | None, fault: Fault | None) -> Ended:
    from lora_mnist.cli.main import main

    texts = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
    for number, text in enumerate(texts, 1):
        os.dup2(text.fileno(), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "wb", closefd=False)) for number in (1, 2))
    sys.argv = ["lora-mnist", *line]
    disk = Disk(folder or Path("/nowhere"), fault)
    with disk.installed():
        code = main(line)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    out, err = (_content(text) for text in texts)
    return Ended(code, out, err, tuple(disk.operations))


def _content(file) -> str:
    file.seek(0)
    return file.read().decode()


def _drop_the_guards() -> None:
    from contextlib import contextmanager

    from lora_mnist.runs import run

    @contextmanager
    def one_writer(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield False

    run.one_writer = one_writer
