"""Read files that somebody else may have put there, only regular ones, of bounded size; leave no empty folders."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

LARGEST_DOCUMENT = 64 << 20  # bytes; no JSON or table of ours comes near it


def read_regular(path: Path, largest: int = LARGEST_DOCUMENT) -> bytes:
    """The content of a file. Raises OSError if it cannot be read, is not a regular file, or has more than `largest`."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes")
        return file.read()


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read it. Raises OSError if it cannot be read, or is a pipe or a device, which might never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is not a regular file")
    return path.open("rb")


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """On leaving, remove `folder` and those above it that the block made, unless something is in them."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # something is
            for path in made:
                path.rmdir()
