import csv
import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import DEFAULT, Mock

import pytest

from lora_mnist.errors import AlteredError, BusyError, RunError
from lora_mnist.runs import atomic
from lora_mnist.sweep.jobs import run_jobs
from lora_mnist.sweep.rows import CSV, JSON, PARTS, Store, to_csv


@pytest.fixture(scope="module")
def rows(small):
    _, context, jobs = small
    return run_jobs(context, jobs[:2])


def test_what_a_killed_sweep_left_counts(tmp_path, rows):
    first, second = rows
    with (store := Store(tmp_path)).writing():
        store.add([first])
    (tmp_path / PARTS).mkdir()
    store.add([second])  # and killed here
    left = [tmp_path / PARTS / ".a.json.new-01234567", tmp_path / ".results.json.new-01234567"]
    for path in left:
        path.write_text("half")
    found = Store(tmp_path)
    assert found.rows.keys() == {first.key, second.key}
    with found.writing():
        pass
    assert [row["key"] for row in json.loads((tmp_path / JSON).read_text())["rows"]] == sorted(found.rows)
    assert not (tmp_path / PARTS).exists()
    assert not any(path.exists() for path in left)


def test_an_end_while_rows_are_put_together_loses_none(tmp_path, rows, monkeypatch):
    first, second = rows
    with (store := Store(tmp_path)).writing():
        store.add([first])
    for done in (0, 1):  # before results.json, and between the two files
        (tmp_path / PARTS).mkdir(exist_ok=True)
        store.add([second])
        interrupted = Mock(wraps=atomic.write_file, side_effect=[*done * [DEFAULT], KeyboardInterrupt])
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), store.writing():
            patched.setattr(atomic, "write_file", interrupted)
        assert Store(tmp_path).rows.keys() == {first.key, second.key}
    with Store(tmp_path).writing():
        pass
    assert len((tmp_path / CSV).read_text().splitlines()) == 3
    assert not (tmp_path / PARTS).exists()


def test_what_is_not_of_a_sweep_stays(tmp_path):
    (tmp_path / PARTS).mkdir()
    (tmp_path / PARTS / "mine.txt").write_text("mine")
    with Store(tmp_path).writing():
        pass
    assert (tmp_path / PARTS / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("place", [JSON, "part"])
def test_a_number_that_was_changed_is_noticed(tmp_path, rows, place):
    with (store := Store(tmp_path)).writing():
        store.add(rows)
    path = tmp_path / JSON
    if place == "part":
        (tmp_path / PARTS).mkdir()
        path = path.rename(tmp_path / PARTS / "part.json")
    text = path.read_text()
    for found in re.finditer(r'"(scale|seed|parameters|missed|errors)": (\d)', text):
        other = str((int(found[2]) + 1) % 10)
        path.write_text(text[: found.start(2)] + other + text[found.end(2) :])
        with pytest.raises(AlteredError, match=path.name):
            Store(tmp_path)


def test_one_writes_at_a_time(tmp_path):
    with Store(tmp_path).writing(), ThreadPoolExecutor() as other, pytest.raises(BusyError):
        other.submit(Store(tmp_path).writing().__enter__).result()


@pytest.mark.parametrize(
    "content", ["{", '{"schema_version": 5}', '{"schema_version": 5, "sha256": "", "rows": [{"key": 3}]}']
)
def test_what_is_no_result_is_refused(tmp_path, content):
    (tmp_path / JSON).write_text(content)
    with pytest.raises(AlteredError, match=JSON):
        Store(tmp_path)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda file: file.write_text('{"schema_version": 4}')])
def test_what_cannot_be_read_is_refused(tmp_path, make):
    make(tmp_path / JSON)
    with pytest.raises(RunError, match=r"cannot be read|another version"):
        Store(tmp_path)


def test_the_csv_has_a_line_a_row_with_settings_and_counts(rows):
    found = list(csv.DictReader(io.StringIO(to_csv(rows).decode())))
    for line, row in zip(found, rows, strict=True):
        assert line["key"] == row.key
        assert int(line["test_errors"]) == row.after["test"].errors == sum(row.after["test"].wrong)
        assert int(line["base_val_missed"]) == row.before["val"].missed
        assert int(line[f"test_wrong_{row.digit}"]) == row.after["test"].missed
        assert float(line["focus"]) == row.settings.focus
        assert json.loads(line["targets"]) == list(row.settings.targets)
