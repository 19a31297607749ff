"""Fetch the packed files of MNIST, each from the first mirror that has it; what one began, the next goes on with.

A program of its own, `python -m lora_mnist.datasets.fetch FOLDER [MIRROR …]`, so that it can be ended wherever it
waits: for a name, a handshake, a server's next byte. It ends when its standard input does, as with whoever started it.
"""

import http
import http.client
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from io import BufferedRandom
from pathlib import Path

from lora_mnist.datasets.arrival import Arrival, UnfitError
from lora_mnist.datasets.mirrors import mirrors
from lora_mnist.datasets.published import MNIST_FILES

PIECE = 1 << 16  # bytes
SILENCE = 10  # seconds without a byte after which one connection is given up


def fetch(folder: Path, urls: Sequence[str]) -> None:
    """Bring NAME.gz into `folder` for each of the four files. What lies there of one is checked, and completed.

    Args:
        urls: base URLs of the mirrors.

    Raises:
        OSError: no mirror had one of them, or it cannot be written.
    """
    for name in MNIST_FILES:
        _fetch(folder / f"{name}.gz", name, urls)


def _fetch(path: Path, name: str, urls: Sequence[str]) -> None:
    refusals = []
    with path.open("a+b") as file:
        for url in urls:
            try:
                return _from(f"{url.rstrip('/')}/{path.name}", file, name)
            except (OSError, http.client.HTTPException, UnfitError) as error:
                refusals.append(f"{url}: {_why(error)}")
    raise OSError(f"{path.name}: {'; '.join(refusals)}")


def _why(error: Exception) -> str:
    reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or type(reason).__name__)


def _from(url: str, file: BufferedRandom, name: str) -> None:
    """Go on with what is in `file`; if that and what this mirror sends are no whole, take all of it from this one."""
    began = file.seek(0, os.SEEK_END)
    try:
        _receive(url, file, _arrived(file, name))
    except UnfitError:
        file.truncate(0)
        if not began:
            raise
        _from(url, file, name)


def _arrived(file: BufferedRandom, name: str) -> Arrival:
    """What came before, checked again."""
    arrival = Arrival(*MNIST_FILES[name])
    file.seek(0)
    for piece in iter(partial(file.read, PIECE), b""):
        arrival.take(piece)
    return arrival


def _receive(url: str, file: BufferedRandom, arrival: Arrival) -> None:
    """Add to `file` what is missing of it. Nothing is written that cannot be part of it."""
    at = file.tell()
    pieces: Iterator[bytes] = iter(()) if arrival.complete else _pieces(url, at)
    for piece in pieces:
        arrival.take(piece)
        file.write(piece)
        file.flush()  # whoever started this sees how far it is
        if arrival.complete:
            break
    if not arrival.complete:
        raise ConnectionError(f"it ended after {file.tell():,} bytes, before the file did")


def _pieces(url: str, at: int) -> Iterator[bytes]:
    """What a server sends, from byte `at` of the file on. Raises UnfitError if it cannot begin there."""
    headers = {"User-Agent": "lora-mnist", **({"Range": f"bytes={at}-"} if at else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SILENCE)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise UnfitError(str(error)) from error
        raise
    with answer:
        if at and not answer.headers.get("Content-Range", "").startswith(f"bytes {at}-"):
            raise UnfitError("it does not go on where another stopped")
        yield from iter(partial(answer.read1, PIECE), b"")


def _end_with_parent() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock this thread would hold when Python ends
    os._exit(1)


def _main(folder: str, *urls: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    fetch(Path(folder), urls or mirrors())


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except Exception as error:
        sys.exit(str(error) or type(error).__name__)
