"""Which JSON files are opened for reading, and how often."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_counters: list[tuple[str, Counter[str]]] = []


@contextmanager
def json_reads(folder: Path) -> Iterator[Counter[str]]:
    """How often each JSON file below `folder` is opened for reading in the block."""
    counter = Counter[str]()
    _counters.append((f"{folder}{os.sep}", counter))
    try:
        yield counter
    finally:
        _counters.pop()


def _count(event: str, arguments: tuple) -> None:
    if _counters and event == "open":
        path, _, flags = arguments
        below, counter = _counters[-1]
        if str(path).startswith(below) and str(path).endswith(".json") and not flags & (os.O_WRONLY | os.O_RDWR):
            counter[str(path).removeprefix(below)] += 1


sys.addaudithook(_count)  # for as long as Python runs: such a hook cannot be taken away
