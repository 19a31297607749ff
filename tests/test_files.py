import math
import os
import re

import pytest

from lora_mnist import files
from lora_mnist.errors import DiskError, UsageError
from lora_mnist.files import require_unused, require_writable, write_file

from .conftest import snapshot
from .faults.disk import Disk, Fault


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="file"):
        require_writable(tmp_path / "file" / "run")


def test_json_holds_no_number_that_is_none():
    assert files.to_json({"a": 1.5}) == b'{\n "a": 1.5\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.to_json({"a": math.nan})


def test_a_place_is_tried_by_writing_there(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    disk = Disk(tmp_path / "x", Fault(2, 28))  # after the folder and the file
    with disk.installed(), pytest.raises(DiskError, match="No space left"):
        require_writable(tmp_path / "x")
    assert [one.partition(" ")[0] for one in disk.operations] == ["mkdir", "open", "write"]


def test_a_file_of_the_users_choice_replaces_no_folder_and_no_file_unasked(tmp_path):
    (tmp_path / "x").write_bytes(b"one")
    with pytest.raises(UsageError, match=f"{tmp_path} is a folder"):
        require_unused(tmp_path, force=True)
    with pytest.raises(UsageError, match=r"x is there already.*--force"):
        require_unused(tmp_path / "x", force=False)
    for name, force in (("x", True), ("y", False), ("new/z", False)):
        require_unused(tmp_path / name, force)
    assert snapshot(tmp_path) == {"x": b"one"}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no regular file"):
        require_unused(tmp_path / "pipe", force=True)


def test_a_failed_write_leaves_the_old_file_and_no_remains(tmp_path, monkeypatch):
    write_file(tmp_path / "a", b"one")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        write_file(tmp_path / "a", b"two")
    assert snapshot(tmp_path) == {"a": b"one"}


def test_files_that_belong_together_are_replaced_together(tmp_path, monkeypatch):
    files.write_files(tmp_path, {"a": b"old", "b": b"old"})
    honest = files._write

    def full(path, content):
        if path.name == "b":
            raise OSError(28, "No space left on device")
        honest(path, content)

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(DiskError, match=f"{re.escape(str(tmp_path))}.*No space left"):
        files.write_files(tmp_path, {"a": b"new", "b": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}
