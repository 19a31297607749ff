import csv
import io
import json

import pytest

from lora_mnist.errors import AlteredError, BusyError
from lora_mnist.sweep.rows import CSV, JSON, PARTS, Store, to_csv
from lora_mnist.sweep.work import Worker
from tests.test_architecture import ROOT


@pytest.fixture(scope="module")
def rows(small):
    _, world, jobs = small
    return Worker(world).do(jobs[:2])


def test_rows_are_there_again(tmp_path, rows):
    with (store := Store(tmp_path)).writing():
        store.add(rows)
    assert not (tmp_path / PARTS).exists()
    assert Store(tmp_path).rows == {row.key: row for row in rows}


def test_what_a_killed_sweep_left_counts(tmp_path, rows):
    first, second = rows
    with Store(tmp_path).writing():
        pass
    with (store := Store(tmp_path)).writing():
        store.add([first])
    store = Store(tmp_path)
    (tmp_path / PARTS).mkdir()
    store.add([second])  # and killed here
    found = Store(tmp_path)
    assert found.rows.keys() == {first.key, second.key}
    with found.writing():
        pass
    assert [row["key"] for row in json.loads((tmp_path / JSON).read_text())["rows"]] == sorted(found.rows)
    assert not (tmp_path / PARTS).exists()


def test_an_interrupt_puts_together_what_is_finished(tmp_path, rows):
    def interrupted():
        with (store := Store(tmp_path)).writing():
            store.add(rows)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / JSON).is_file()
    assert len((tmp_path / CSV).read_text().splitlines()) == 3


def test_one_writes_at_a_time(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    def second():
        with Store(tmp_path).writing():
            pass

    with Store(tmp_path).writing(), ThreadPoolExecutor() as other, pytest.raises(BusyError):
        other.submit(second).result()


@pytest.mark.parametrize("content", ["{", '{"schema_version": 2}', '{"schema_version": 2, "rows": [{"key": 3}]}'])
def test_what_is_no_result_is_refused(tmp_path, content):
    (tmp_path / JSON).write_text(content)
    with pytest.raises(AlteredError, match=JSON):
        Store(tmp_path)


def test_the_csv_has_a_line_a_row_with_settings_and_counts(rows):
    found = list(csv.DictReader(io.StringIO(to_csv(rows))))
    for line, row in zip(found, rows, strict=True):
        assert line["key"] == row.key
        assert int(line["test_errors"]) == row.after["test"].errors == sum(row.after["test"].wrong)
        assert int(line["base_val_missed"]) == row.before["val"].missed
        assert int(line[f"test_wrong_{row.digit}"]) == row.after["test"].missed
        assert float(line["focus"]) == row.settings.focus
        assert json.loads(line["targets"]) == list(row.settings.targets)


def test_rows_need_no_torch():
    import subprocess
    import sys

    program = "import sys, lora_mnist.sweep.answer, lora_mnist.sweep.grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
