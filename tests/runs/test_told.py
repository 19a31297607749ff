"""The table in SECURITY.md is the list."""

from pathlib import Path

from lora_mnist.runs.told import TOLD, is_told

SECURITY = Path(__file__).parent.parent.parent / "SECURITY.md"


def test_the_table_is_the_list():
    rows = [line for line in SECURITY.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| {one.file} | `{one.fields}` | {one.why} |" for one in TOLD]


def test_a_pattern_holds_for_its_own_file_only():
    assert is_told("provenance.json", "versions.torch")
    assert is_told("finetune.json", "settings.focus")
    assert not is_told("finetune.json", "settings.rank")
    assert not is_told("run.json", "settings.focus")
