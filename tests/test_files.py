import os

import pytest

from lora_mnist import files
from lora_mnist.errors import AlteredError, DiskError, RunError
from lora_mnist.files import check_folder, is_finished, new_folder, remove_folder, require_writable, write_file

from .conftest import flip_bit, snapshot


def fill(place, text):
    with new_folder(place) as folder:
        write_file(folder / "a.txt", text)


def test_a_folder_appears_whole_and_checks_out(tmp_path):
    fill(tmp_path / "x", b"one")
    check_folder(tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == ["x"]
    assert (tmp_path / "x" / "a.txt").read_bytes() == b"one"


def test_an_interrupted_replacement_leaves_the_old_folder(tmp_path):
    fill(tmp_path / "x", b"one")
    before = snapshot(tmp_path)

    def interrupted():
        with new_folder(tmp_path / "x") as folder:
            write_file(folder / "a.txt", b"two")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert snapshot(tmp_path) == before


def test_death_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    place = tmp_path / "x"
    fill(place, b"one")
    monkeypatch.setattr(files, "_restore", lambda place: None)  # as if the process had been killed there
    monkeypatch.setattr("pathlib.Path.rename", _only_away_from(place))
    with pytest.raises(DiskError):
        fill(place, b"two")
    monkeypatch.undo()
    assert not place.exists()
    assert is_finished(place)
    assert (place / "a.txt").read_bytes() == b"one"


def _only_away_from(place):
    def rename(self, target):
        if self != place:
            raise OSError("killed")
        os.rename(self, target)

    return rename


def test_remains_of_a_killed_process_are_cleared_by_the_next(tmp_path):
    (tmp_path / ".x.new-dead").mkdir()
    (tmp_path / ".x.new-dead" / "half").write_bytes(b"")
    fill(tmp_path / "x", b"one")
    assert sorted(os.listdir(tmp_path)) == ["x"]


def test_every_kind_of_damage_is_noticed_and_named(tmp_path):
    place = tmp_path / "x"
    fill(place, b"one")
    flip_bit(place / "a.txt")
    with pytest.raises(AlteredError, match=r"a\.txt"):
        check_folder(place)
    fill(place, b"one")
    flip_bit(place / "manifest.json", -10)
    with pytest.raises(RunError, match=r"manifest\.json"):
        check_folder(place)
    fill(place, b"one")
    (place / "a.txt").unlink()
    with pytest.raises(RunError, match=r"a\.txt"):
        check_folder(place)


def test_a_folder_without_a_manifest_does_not_count(tmp_path):
    (tmp_path / "x").mkdir()
    assert not is_finished(tmp_path / "x")


def test_a_removed_folder_leaves_nothing(tmp_path):
    fill(tmp_path / "x", b"one")
    remove_folder(tmp_path / "x")
    remove_folder(tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="file"):
        require_writable(tmp_path / "file" / "run")


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
    honest = files.write_file

    def full(path, content):
        if path.name == "b":
            raise DiskError("full", "")
        honest(path, content)

    monkeypatch.setattr(files, "write_file", full)
    with pytest.raises(DiskError):
        files.write_files(tmp_path, {"a": b"new", "b": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}
