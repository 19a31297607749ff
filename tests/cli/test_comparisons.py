"""Networks beside each other on a terminal of 80 columns."""

import json
import re

import pytest

from lora_mnist.cli.comparisons import PAIRS, before_and_after, side_by_side
from lora_mnist.evaluation import verdict
from lora_mnist.pipeline.compare import PairOfNetworks, SideBySide, compare
from lora_mnist.runs.run import Run

from .test_tables import LARGEST, changed, printed, words


def rows(text: str) -> dict[str, list[str]]:
    """Cells of every table row by the first of them."""
    cells = ([cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line)
    return {first: rest for first, *rest in cells}


def pair(first: int = 1, second: int = 2, fixed: int = 0, broken: int = 0, p: float = 1.0, **more) -> PairOfNetworks:
    return PairOfNetworks(first=first, second=second, errors=verdict.Tested(fixed=fixed, broken=broken, p=p), **more)


@pytest.fixture(scope="module")
def compared(finished_run) -> SideBySide:
    return compare([finished_run])


def several(compared: SideBySide, count: int) -> SideBySide:
    """So many networks, the last of which is the best, and all pairs."""
    networks = [changed(compared.networks[1], number=i, errors=1000 - i) for i in range(1, count + 1)]
    pairs = [pair(i, j) for i in range(1, count + 1) for j in range(i + 1, count + 1)]
    return SideBySide(networks=tuple(networks), pairs=tuple(pairs))


# evaluate -------------------------------------------------------------------------------------------------------------


def test_before_is_what_the_base_has_stored(cli, finished_run):
    run = Run(finished_run)
    (adapter,) = run.adapters()
    before, after = (saved.evaluation.splits for saved in (run.base, adapter))
    code, out, err = cli("evaluate", "--run", finished_run, "--adapter", adapter.name)
    assert (code, err) == (0, "")
    shown = rows(out.partition("Confusion")[0])
    for i, split in enumerate(("val", "test")):
        for digit in range(10):
            cells = [int(cell) for cell in shown[str(digit)][4 * i : 4 * i + 4]]
            was, now = before[split].wrong[digit], after[split].wrong[digit]
            assert cells == [after[split].images[digit], was, now, now - was]
        was, now = before[split].errors, after[split].errors
        assert [int(cell) for cell in shown["all"][4 * i : 4 * i + 4]] == [after[split].count, was, now, now - was]
    rates = f"{100 * before['test'].accuracy:.2f} → {100 * after['test'].accuracy:.2f} % on test"
    assert rates in out
    assert f"of the base (before) and of the base + {adapter.name} at strength 1 (after)" in " ".join(out.split())


def test_the_base_alone_has_no_before(cli, finished_run):
    code, out, _ = cli("evaluate", "--run", finished_run)
    assert (code, "before" in out) == (0, False)


def test_before_and_after_fit_80_columns(finished_run):
    base = Run(finished_run).base.evaluation
    wrong = {"wrong": (1135,) * 10, "confusion": ((1135,) * 10,) * 10}
    largest = changed(base, splits={split: changed(part, **wrong) for split, part in base.splits.items()})
    lines = printed(before_and_after(largest, largest)).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


# compare --------------------------------------------------------------------------------------------------------------


def test_compare_prints_what_the_json_says(cli, finished_run, compared):
    code, out, err = cli("compare", finished_run)
    assert (code, err) == (0, "")
    adapter, test = compared.networks[1].adapter, compared.pairs[0]
    missed, false_alarms, errors = zip(adapter.before.numbers, adapter.after.numbers, strict=True)
    line = next(line for line in out.splitlines() if f" {adapter.name} " in line).split()
    figures = [f"{before}→{after}" for before, after in (missed, false_alarms, errors)]
    assert line == ["2", adapter.name, str(adapter.digit), "2", f"{adapter.parameters:,}", *figures]
    line = next(line for line in out.splitlines() if "1 and 2" in line)
    assert line.split()[:6] == ["1", "and", "2", "all", str(test.errors.broken), str(test.errors.fixed)]
    assert f"the {adapter.digit}s" in out
    assert f"{finished_run}: scikit-learn's digits, not MNIST, 359 test images" in " ".join(out.split())
    code, out, _ = cli("compare", finished_run, "--json")
    assert json.loads(out) == compared.model_dump(mode="json")


def test_compare_without_a_run_takes_the_default_one(cli, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "default").symlink_to(finished_run)
    assert cli("compare")[1].splitlines()[0].startswith("runs/default: ")


@pytest.mark.parametrize(
    ("fixed", "broken", "p", "said"),
    [
        (9, 1, 0.0215, "2 is better"),
        (1, 9, 0.0215, "1 is better"),
        (3, 1, 0.625, "may be chance"),
        (2, 2, 1.0, "as good"),
        (0, 50, 1e-15, "<0.0001"),
    ],
)
def test_a_pair_says_which_is_better(compared, fixed, broken, p, said):
    text = printed(side_by_side(changed(compared, pairs=(pair(fixed=fixed, broken=broken, p=p),))))
    line = next(line for line in text.splitlines() if "1 and 2" in line)
    assert said in line
    assert line.split()[4:6] == [str(broken), str(fixed)]


def test_of_too_many_pairs_those_with_the_best_are_shown(compared):
    shown = re.findall(r"\d+ and \d+", printed(side_by_side(several(compared, 6))))
    assert len(shown) == PAIRS
    text = words(side_by_side(several(compared, 7)))
    assert re.findall(r"\d+ and \d+", text) == [f"{i} and 7" for i in range(1, 7)]
    assert "Of 21 pairs, those with the network of fewest errors are shown; --verbose shows all." in text
    every = words(side_by_side(several(compared, 7), every_pair=True))
    assert len(re.findall(r"\d+ and \d+", every)) == 21
    assert "are shown" not in every


def test_networks_with_other_test_images_are_told_and_not_tested(compared):
    other = changed(compared.networks[0], number=3, run="m", dataset__name="mnist", dataset__sha256="x")
    text = words(side_by_side(changed(compared, networks=(*compared.networks, other))))
    assert "No test between networks whose test images differ: 1, 2 (digits) and 3 (mnist)." in text
    assert "and 3 all" not in text
    assert "differ" not in words(side_by_side(compared))


def test_an_adapter_on_top_of_others_says_so(compared):
    upper = changed(compared.networks[1], number=3, adapter__on_top_of=("a", "b"))
    assert "3 is with a, b on, before and after." in words(side_by_side(SideBySide(networks=(upper,), pairs=())))


def test_a_network_alone_makes_no_pair(compared):
    text = words(side_by_side(SideBySide(networks=compared.networks[:1], pairs=())))
    assert "base" in text
    assert "McNemar" not in text


def test_everything_fits_80_columns(compared):
    line = changed(compared.networks[1].adapter, before=LARGEST, after=LARGEST, parameters=28_070_010, name="a" * 64)
    largest = changed(compared.networks[1], number=88, name="a" * 64, adapter=line, run="/a" * 20)
    tested = verdict.Tested(fixed=9999, broken=9999, p=0.00015)
    pairs = (pair(88, 99, 9999, 9999, 0.00015, digit=9, missed=tested),)
    text = printed(side_by_side(SideBySide(networks=(largest, changed(largest, number=99)), pairs=pairs)))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.count("1135→1135") == 2
