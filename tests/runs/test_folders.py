import os
import stat

import pytest

from lora_mnist.errors import AlteredError, DiskError, RunError
from lora_mnist.files import NEW, read_json, require_writable, write_file, write_files
from lora_mnist.runs import folders
from lora_mnist.runs.folders import (
    check_folder,
    clear,
    finished_folders,
    is_finished,
    new_folder,
    recover,
    remove_folder,
    standing,
)

from ..conftest import flip_bit, snapshot


def fill(place, text):
    with new_folder(place) as folder:
        write_file(folder / "a.txt", text)


def test_a_folder_appears_whole_and_checks_out(tmp_path):
    fill(tmp_path / "x", b"one")
    check_folder(tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == ["x"]
    assert (tmp_path / "x" / "a.txt").read_bytes() == b"one"


def test_a_pipe_in_its_place_is_replaced_and_not_waited_for(tmp_path):
    for name in ("x", ".x.old"):
        os.mkfifo(tmp_path / name)
    fill(tmp_path / "x", b"one")
    check_folder(tmp_path / "x")
    clear(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["x"]


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


class Killed(BaseException):
    """Ends a writer where it stands: what it would clean up is left."""


@pytest.fixture
def killed_at(tmp_path, monkeypatch):
    """Fill `tmp_path / "x"` with b"one", then with b"two", but die before the rename of that number (from 1 on)."""

    def kill(number):
        renames = []

        def rename(self, target):
            renames.append(self)
            if len(renames) >= number:
                raise Killed
            os.rename(self, target)

        place = tmp_path / "x"
        fill(place, b"one")
        monkeypatch.setattr("pathlib.Path.rename", rename)
        monkeypatch.setattr(folders.shutil, "rmtree", lambda *_, **__: None)
        if number < 3:
            monkeypatch.setattr(folders, "_restore", lambda place: None)
        with pytest.raises(Killed):
            fill(place, b"two")
        monkeypatch.undo()
        return place

    return kill


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_death_at_any_rename_loses_nothing_and_readers_move_nothing(killed_at, tmp_path, rename):
    place = killed_at(rename)
    before = snapshot(tmp_path)
    assert is_finished(place)
    assert finished_folders(tmp_path) == [place]  # and not what was about to replace it
    check_folder(place)
    found = (standing(place) / "a.txt").read_bytes()
    assert found == (b"two" if rename == 3 else b"one")
    assert place.exists() == (rename != 2)
    assert snapshot(tmp_path) == before
    recover(tmp_path)
    assert standing(place) == place
    assert (place / "a.txt").read_bytes() == found
    fill(place, b"three")
    clear(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["x"]
    assert (place / "a.txt").read_bytes() == b"three"


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_what_is_removed_after_a_death_does_not_come_back(killed_at, tmp_path, rename):
    place = killed_at(rename)
    remove_folder(place)
    assert not is_finished(place)
    recover(tmp_path)
    assert finished_folders(tmp_path) == []


def test_a_reader_between_the_two_renames_sees_the_old_folder(tmp_path, monkeypatch):
    place, seen = tmp_path / "x", []
    fill(place, b"one")

    def rename(self, target):
        os.rename(self, target)
        assert is_finished(place)
        assert finished_folders(tmp_path) == [place]
        check_folder(place)
        seen.append((standing(place) / "a.txt").read_bytes())

    monkeypatch.setattr("pathlib.Path.rename", rename)
    fill(place, b"two")
    assert seen == [b"one", b"two", b"two"]
    assert os.listdir(tmp_path) == ["x"]


def test_another_writer_that_recovers_in_between_does_no_harm(tmp_path, monkeypatch):
    place, times = tmp_path / "x", []
    fill(place, b"one")

    def rename(self, target):
        os.rename(self, target)
        times.append(self)
        if len(times) == 1:
            recover(tmp_path)

    monkeypatch.setattr("pathlib.Path.rename", rename)
    fill(place, b"two")
    assert (place / "a.txt").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["x"]


def test_a_disk_that_refuses_the_second_rename_leaves_the_old_folder(tmp_path, monkeypatch):
    place = tmp_path / "x"
    fill(place, b"one")
    before = snapshot(tmp_path)

    def rename(self, target):
        if NEW in self.name:
            raise OSError(28, "No space left on device")
        os.rename(self, target)

    monkeypatch.setattr("pathlib.Path.rename", rename)
    with pytest.raises(DiskError, match="No space left"):
        fill(place, b"two")
    assert snapshot(tmp_path) == before


def test_a_folder_put_into_place_between_two_looks_is_found(tmp_path, monkeypatch):
    place, old = tmp_path / "x", tmp_path / ".x.old"
    fill(place, b"one")
    place.rename(old)
    honest = os.stat

    def look(path, **named):
        if old.name in str(path) and os.path.lexists(old):  # the reader has missed it at its place
            os.rename(old, place)
        return honest(path, **named)

    monkeypatch.setattr("pathlib.Path.stat", lambda path, **named: look(path, **named))
    assert is_finished(place)


def test_an_error_of_the_block_is_not_the_disks(tmp_path):
    def unreadable():
        with new_folder(tmp_path / "x"):
            (tmp_path / "absent").read_bytes()

    with pytest.raises(FileNotFoundError, match="absent"):
        unreadable()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)])
def test_the_umask_decides_who_may_read(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        fill(tmp_path / "x", b"one")
        write_file(tmp_path / "y", b"one")
        write_files(tmp_path / "z", {"a": b"one"})
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {
        **dict.fromkeys(("x", "z"), folder),
        **dict.fromkeys(("x/a.txt", "x/manifest.json", "y", "z/a"), file),
    }


@pytest.fixture
def synced(monkeypatch):
    """What is synced, by path, in turn."""
    paths, honest = [], os.fsync

    def fsync(handle):
        paths.append(os.readlink(f"/proc/self/fd/{handle}"))
        honest(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux says what a handle is of")
def test_files_are_synced_before_they_are_renamed_and_folders_after(tmp_path, synced):
    with new_folder(tmp_path / "x") as fresh:
        for name in "abc":
            write_file(fresh / name, b"")
    assert len(synced) == 4 + 1 + 1  # three files and the manifest, the folder once, its parent once
    assert synced[-2:] == [str(fresh), str(tmp_path)]
    synced.clear()
    write_file(tmp_path / "y", b"")
    assert [os.path.dirname(synced[0]), *synced[1:]] == [str(tmp_path), str(tmp_path)]
    synced.clear()
    write_files(tmp_path / "z", {"a": b"", "b": b""})
    assert synced[2:] == [str(tmp_path / "z")]


def test_a_system_that_opens_no_folders_is_no_error(tmp_path, monkeypatch):
    honest = os.open

    def refuse(path, *rest, **named):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return honest(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    fill(tmp_path / "x", b"one")
    check_folder(tmp_path / "x")


@pytest.mark.parametrize(("number", "refused"), [(22, False), (5, True)])
def test_a_folder_that_cannot_be_synced_is_an_error_unless_none_can(tmp_path, monkeypatch, number, refused):
    honest = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, "of the folder")
        honest(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if refused:
        with pytest.raises(DiskError, match="of the folder"):
            write_file(tmp_path / "x", b"one")
    else:
        write_file(tmp_path / "x", b"one")


def test_messages_name_no_option(tmp_path):
    (tmp_path / "file").write_bytes(b"{")
    for fails in (
        lambda: read_json(tmp_path / "file"),
        lambda: read_json(tmp_path / "absent"),
        lambda: require_writable(tmp_path / "file" / "x"),
        lambda: check_folder(tmp_path),
    ):
        with pytest.raises((RunError, DiskError)) as caught:
            fails()
        assert "--" not in str(caught.value)


def test_remains_of_a_killed_process_are_cleared_by_the_only_writer(tmp_path):
    fill(tmp_path / "x", b"one")
    fill(tmp_path / ".x.old", b"older")
    fill(tmp_path / ".y.old", b"the only one")
    (tmp_path / ".x.new-dead").mkdir()
    (tmp_path / ".x.new-dead" / "half").write_bytes(b"")
    (tmp_path / ".z.new-dead").write_bytes(b"")
    clear(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]
    assert (tmp_path / "x" / "a.txt").read_bytes() == b"one"


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


@pytest.mark.parametrize("change", [bytes.strip, lambda content: content + b" ", lambda content: b" " + content])
def test_a_manifest_is_damaged_also_where_it_says_the_same(tmp_path, change):
    """Else a run's digest would change, which is of the manifests, and nobody would say why."""
    place = tmp_path / "x"
    fill(place, b"one")
    manifest = place / "manifest.json"
    manifest.write_bytes(change(manifest.read_bytes()))
    with pytest.raises(AlteredError, match=r"manifest\.json is damaged"):
        check_folder(place)


def test_a_folder_without_a_manifest_does_not_count(tmp_path):
    (tmp_path / "x").mkdir()
    assert not is_finished(tmp_path / "x")


def test_a_removed_folder_leaves_nothing(tmp_path):
    fill(tmp_path / "x", b"one")
    remove_folder(tmp_path / "x")
    remove_folder(tmp_path / "x")
    assert os.listdir(tmp_path) == []
