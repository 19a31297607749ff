"""Files from several mirrors on this machine, some of which fail in the middle."""

import gzip
import hashlib
import random

import pytest

from lora_mnist.datasets import fetch as fetching
from lora_mnist.datasets.fetch import fetch
from lora_mnist.datasets.published import MNIST_FILES

from .conftest import send

CONTENT = {f"/{name}.gz": random.Random(name).randbytes(300_000) for name in MNIST_FILES}
PACKED = {path: gzip.compress(content, mtime=0) for path, content in CONTENT.items()}
OTHERWISE = {path: gzip.compress(content, 1, mtime=7) for path, content in CONTENT.items()}
FIRST = next(iter(PACKED))
HALF = 150_000


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Files that come at once."""
    known = {path[1:-3]: (hashlib.sha256(data).hexdigest(), len(data)) for path, data in CONTENT.items()}
    monkeypatch.setattr(fetching, "MNIST_FILES", known)


class Mirror:
    """Answers with its files, and remembers what was asked for: path → where the answers began."""

    def __init__(self, packed=PACKED, until=None, ranges=True):
        self.packed, self.until, self.ranges = packed, until, ranges
        self.asked: dict[str, list[int]] = {}

    def __call__(self, handler):
        begin = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.asked.setdefault(handler.path, []).append(begin)
        if not self.ranges:
            del handler.headers["Range"]
        send(handler, self.packed[handler.path], self.until)


def assert_fetched(folder):
    for path, content in CONTENT.items():
        assert gzip.decompress((folder / path[1:]).read_bytes()) == content
    assert len(list(folder.iterdir())) == len(CONTENT)


def test_one_good_mirror_is_asked_once_for_each(serve, tmp_path):
    good, never = Mirror(), Mirror()
    fetch(tmp_path, [serve(good), serve(never)])
    assert_fetched(tmp_path)
    assert good.asked == {path: [0] for path in PACKED}
    assert never.asked == {}


def test_what_one_mirror_began_the_next_goes_on_with(serve, tmp_path):
    dying, other = Mirror(until=HALF), Mirror()
    fetch(tmp_path, [serve(dying), serve(other)])
    assert_fetched(tmp_path)
    assert other.asked == {path: [HALF] for path in PACKED}


def test_a_killed_download_is_gone_on_with(serve, tmp_path):
    (tmp_path / FIRST[1:]).write_bytes(PACKED[FIRST][:HALF])
    (tmp_path / list(PACKED)[1][1:]).write_bytes(PACKED[list(PACKED)[1]])
    good = Mirror()
    fetch(tmp_path, [serve(good)])
    assert_fetched(tmp_path)
    assert good.asked.get(list(PACKED)[1]) is None  # it was whole
    assert good.asked[FIRST] == [HALF]


@pytest.mark.parametrize("left", [b"<html>", b"\x1f\x8b", PACKED[FIRST][:1000] + b"x" * 1000, PACKED[FIRST] + b"x"])
def test_a_damaged_beginning_is_thrown_away(serve, tmp_path, left):
    (tmp_path / FIRST[1:]).write_bytes(left)
    fetch(tmp_path, [serve(Mirror())])
    assert_fetched(tmp_path)


def test_a_mirror_that_packs_otherwise_is_taken_alone(serve, tmp_path):
    dying, other = Mirror(until=HALF), Mirror(OTHERWISE)
    fetch(tmp_path, [serve(dying), serve(other)])
    assert_fetched(tmp_path)
    assert other.asked == {path: [HALF, 0] for path in PACKED}


def test_a_mirror_that_cannot_go_on_begins_anew(serve, tmp_path):
    dying, other = Mirror(until=HALF), Mirror(ranges=False)
    fetch(tmp_path, [serve(dying), serve(other)])
    assert_fetched(tmp_path)


def test_a_page_of_html_is_not_read_to_its_end(serve, tmp_path):
    pieces = []

    def page(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while len(pieces) < 1000:
                handler.wfile.write(b"<p>sign in</p>" * 10_000)
                pieces.append(None)
        except OSError:
            pass

    fetch(tmp_path, [serve(page), serve(Mirror())])
    assert_fetched(tmp_path)
    assert len(pieces) < 1000


def test_all_refusals_are_told_and_what_came_stays(serve, tmp_path):
    def absent(handler):
        handler.send_error(404)

    urls = [serve(Mirror(until=HALF)), serve(absent), "http://127.0.0.1:9/"]
    with pytest.raises(OSError, match="ended after 150,000 bytes") as caught:
        fetch(tmp_path, urls)
    assert "404" in str(caught.value)
    assert "http://127.0.0.1:9/: Connection refused" in str(caught.value)
    assert (tmp_path / FIRST[1:]).read_bytes() == PACKED[FIRST][:HALF]


def test_a_wrong_file_leaves_nothing(serve, tmp_path):
    wrong = Mirror({path: gzip.compress(b"x" * 300_000) for path in PACKED})
    with pytest.raises(OSError, match="SHA-256"):
        fetch(tmp_path, [serve(wrong)])
    assert (tmp_path / FIRST[1:]).read_bytes() == b""


def test_an_offset_behind_the_end_begins_anew(serve, tmp_path):
    def short(handler):
        if "Range" in handler.headers:
            handler.send_error(416)
        else:
            send(handler, PACKED[handler.path])

    fetch(tmp_path, [serve(Mirror(until=HALF)), serve(short)])
    assert_fetched(tmp_path)
