"""A gzip file that arrives piece by piece, checked as it does."""

import hashlib
import zlib

WINDOW = 31  # zlib's number for gzip, with its header and its CRC
PACKED_MORE = 1 << 16  # bytes by which a gzip may be larger than what is in it


class UnfitError(Exception):
    """What came is not the file, so there is nothing to be continued."""


class Arrival:
    """What has come of a gzip file, of which it is known what is in it.

    Args:
        sha256: of the decompressed bytes.
        size: how many there are.

    Attributes:
        complete: whether all of it has come, and is right.
    """

    def __init__(self, sha256: str, size: int):
        self.complete = False
        self._sha256, self._size = sha256, size
        self._packed, self._unpacked, self._hash = 0, 0, hashlib.sha256()
        self._stream = zlib.decompressobj(WINDOW)

    def take(self, piece: bytes) -> None:
        """The next bytes, of which nothing large is ever unpacked. Raises UnfitError if they cannot be the file's."""
        self._packed += len(piece)
        if self.complete or self._packed > self._size + PACKED_MORE:
            raise UnfitError(f"more than the file came ({self._packed:,} bytes)")
        try:
            content = self._stream.decompress(piece, self._size - self._unpacked + 1)
        except zlib.error as error:
            raise UnfitError("it is no gzip file" if not self._unpacked else f"it is damaged ({error})") from error
        self._hash.update(content)
        self._unpacked += len(content)
        if self._unpacked > self._size or self._stream.unused_data:
            raise UnfitError(f"it holds more than the {self._size:,} bytes of the published file")
        if self._stream.eof:
            if self._hash.hexdigest() != self._sha256:
                raise UnfitError("it is not the published file: its SHA-256 differs")
            self.complete = True
