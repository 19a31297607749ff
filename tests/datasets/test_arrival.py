"""A file is refused at the first byte that shows that it is another."""

import gzip
import hashlib
import random

import pytest

from lora_mnist.datasets.arrival import PACKED_MORE, Arrival, UnfitError

CONTENT = random.Random(0).randbytes(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def arrive(packed: bytes, piece: int = 1000) -> int:
    """How many bytes were taken until the file was complete."""
    arrival = Arrival(SHA256, len(CONTENT))
    for at in range(0, len(packed), piece):
        arrival.take(packed[at : at + piece])
        if arrival.complete:
            return at + len(packed[at : at + piece])
    return 0


def refused_at(packed: bytes, piece: int = 1000) -> tuple[int, str]:
    """How many bytes were taken until it was refused, and why."""
    arrival = Arrival(SHA256, len(CONTENT))
    for at in range(0, len(packed), piece):
        try:
            arrival.take(packed[at : at + piece])
        except UnfitError as error:
            return at + piece, str(error)
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize("piece", [1, 7, 1000, 10**6])
@pytest.mark.parametrize("level", [0, 9])
def test_the_published_file_is_taken_in_pieces_of_any_size(piece, level):
    packed = gzip.compress(CONTENT, level)
    assert arrive(packed, piece) == len(packed)
    assert arrive(packed[:-1], piece) == 0


def test_what_is_no_gzip_is_refused_at_its_first_piece():
    page = b"<!DOCTYPE html>" + b" " * 10**6
    assert refused_at(page) == (1000, "it is no gzip file")


def test_a_bomb_is_refused_before_it_is_unpacked():
    at, why = refused_at(gzip.compress(bytes(10**8)), piece=2000)
    assert at <= 2000
    assert "more than the 100,000 bytes" in why


def test_a_file_without_end_is_refused_at_its_size():
    head = gzip.compress(b"", 0)[:10]
    at, why = refused_at(head + b"\x00\x00\x00\xff\xff" * 10**6)  # stored blocks with nothing in them
    assert len(CONTENT) < at <= len(CONTENT) + PACKED_MORE + 1000
    assert why.startswith("more than the file came")


def test_other_content_and_a_damaged_piece_are_refused():
    assert "SHA-256" in refused_at(gzip.compress(CONTENT[:-1] + b"x"))[1]
    packed = bytearray(gzip.compress(CONTENT))
    packed[-6] ^= 1  # of the CRC
    assert "damaged" in refused_at(bytes(packed))[1]


def test_what_follows_the_file_is_refused():
    packed = gzip.compress(CONTENT)
    assert "more than" in refused_at(packed + b"x", piece=10**6)[1]
    arrival = Arrival(SHA256, len(CONTENT))
    arrival.take(packed)
    with pytest.raises(UnfitError, match="more than"):
        arrival.take(b"x")
