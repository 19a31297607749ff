"""Commands in processes of their own that start at once: each is forked from one that has imported everything."""

import io
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import contextmanager, suppress
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


def at_once(*lines: Sequence[object], unguarded: bool = False) -> list[Ended]:
    """Run commands at the same time; `unguarded` takes the lock away, and the second look where there are no locks."""
    gate = _context.Event()
    running = [_Running([line], gate=gate, unguarded=unguarded) for line in lines]
    for one in running:
        assert one.results.recv() is None  # it is ready
    gate.set()
    return [one.ended()[0] for one in running]


class _Running:
    def __init__(self, lines, folder=None, fault=None, gate=None, unguarded=False):
        self.lines = [[str(word) for word in line] for line in lines]
        self.results, child = _context.Pipe(duplex=False)
        job = (child, self.lines, folder, fault, gate, unguarded)
        self.process = _context.Process(target=_work, args=job, daemon=True)
        with _starting:
            self.process.start()
        child.close()

    def ended(self) -> list[Ended]:
        ended: list[Ended] = []
        with suppress(EOFError):
            while len(ended) < len(self.lines):
                if result := self.results.recv():
                    ended.append(result)
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


def _work(results, lines, folder, fault, gate, unguarded) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if unguarded:
        _drop_the_lock()
    results.send(None)
    if gate is not None:
        gate.wait()
    for line in lines:
        signal.alarm(PATIENCE)
        results.send(_one(line, folder, fault))
    results.close()
    os._exit(0)  # nothing of what was imported is to be taken down


def _one(line: Sequence[str], folder: Path | None, fault: Fault | None) -> Ended:
    from lora_mnist.cli.main import main

    files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
    for number, file in enumerate(files, 1):
        os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "wb", closefd=False)) for number in (1, 2))
    sys.argv = ["lora-mnist", *line]
    disk = Disk(folder or Path("/nowhere"), fault)
    with disk.installed():
        code = main(line)
    for stream, file in zip((sys.stdout, sys.stderr), files, strict=True):
        stream.flush()
        file.seek(0)
    out, err = (file.read().decode() for file in files)
    return Ended(code, out, err, tuple(disk.operations))


def _drop_the_lock() -> None:
    from lora_mnist.runs import run

    @contextmanager
    def one_writer(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield False

    run.one_writer = one_writer
