"""docs/lora.ipynb runs from its first cell to its last, and says what it stores."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "lora.ipynb"
CERTAIN = re.compile(r".*(True|False|\d of 1,000 test images|trained [\d,]+:|numbers kept: \d+).*")  # on any processor


def printed_in(notebook) -> list[str]:
    """Every line that a cell printed."""
    outputs = [one for cell in notebook.cells if cell.cell_type == "code" for one in cell.outputs]
    return "".join(one.text for one in outputs if one.output_type == "stream").splitlines()


def wrong_in(notebook) -> dict[str, tuple[int, int]]:
    """By network: wrong nines, and wrong images in all."""
    rows = re.findall(r"^(.+?) +wrong: +(\d+) of 100 nines, +(\d+) of", "\n".join(printed_in(notebook)), re.MULTILINE)
    return {name: (int(nines), int(all_digits)) for name, nines, all_digits in rows}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own
def test_the_notebook_runs_and_says_what_it_stores():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    stored = nbformat.read(NOTEBOOK, 4)
    assert all(cell.outputs for cell in stored.cells if cell.cell_type == "code" and ".show()" in cell.source)
    executed = nbclient.NotebookClient(nbformat.from_dict(stored), timeout=600, kernel_name="python3").execute()
    certain = [[line for line in printed_in(one) if CERTAIN.fullmatch(line)] for one in (stored, executed)]
    assert len(certain[0]) >= 6
    assert certain[0] == certain[1]
    then, now = wrong_in(stored), wrong_in(executed)
    assert then.keys() == now.keys() == {"base", "rank 1", "only nines", "library", "PEFT"}
    assert all(abs(then[name][0] - now[name][0]) <= 10 and abs(then[name][1] - now[name][1]) <= 20 for name in then)
    for repaired in ("rank 1", "library", "PEFT"):
        assert now[repaired][0] < 0.2 * now["base"][0]
        assert now[repaired][1] < 0.7 * now["base"][1]
    assert now["only nines"][1] > 2 * now["base"][1]
