"""What the writers of a folder rest on, where the disk is not what one expects."""

import errno
import os

import pytest

from lora_mnist.runs.atomic import HOLDER, sync_folder, writer_of


def test_a_holder_that_is_no_text_is_nobody(tmp_path):
    (tmp_path / HOLDER).write_bytes(b"\xff\xfe")
    assert writer_of(tmp_path) is None


def test_a_file_system_that_cannot_sync_folders_is_no_error_and_a_broken_disk_is_one(tmp_path, monkeypatch):
    def fails_with(code):
        def fsync(handle):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    fails_with(errno.EINVAL)
    sync_folder(tmp_path)
    fails_with(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)
