"""Tables fit 80 columns and say what the JSON says."""

import json
import re
import shutil
from importlib import import_module

import pytest

from lora_mnist.cli import tables
from lora_mnist.evaluation import verdict
from lora_mnist.evaluation.results import ControlCounts, ControlResult, GuardDecision, PairedControl, TriedScale
from lora_mnist.pipeline import Request, verify
from lora_mnist.pipeline.compare import PairOfNetworks, SideBySide, compare
from lora_mnist.pipeline.doctor import Check, Diagnosis
from lora_mnist.runs.listing import AdapterLine, Listing, list_runs
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import Evaluation

from ..conftest import edited
from .conftest import LARGEST, changed, joined, printed, words


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Words of every line by the first of them."""
    return {first: rest for first, *rest in map(str.split, filter(str.strip, lines))}


def fits(*renderables) -> bool:
    """Whether nothing is wider than 80 columns, or shortened."""
    lines = printed(*renderables)
    return max(map(len, lines)) <= 80 and "…" not in "".join(lines)


@pytest.fixture(scope="module")
def base(finished_run) -> Evaluation:
    return Run(finished_run).base.evaluation


@pytest.fixture(scope="module")
def largest_evaluation(base) -> Evaluation:
    wrong = {"wrong": (1135,) * 10, "confusion": ((1135,) * 10,) * 10}
    return changed(base, splits={split: changed(part, **wrong) for split, part in base.splits.items()})


# evaluate -------------------------------------------------------------------------------------------------------------


def test_errors_per_digit_are_the_stored_ones(succeeds, finished_run, base):
    out = succeeds("evaluate", "--run", finished_run)
    shown, test = rows(out.partition("Confusion")[0].splitlines()), base.splits["test"]
    for digit in range(10):
        assert shown[str(digit)][3:5] == [str(test.images[digit]), str(test.wrong[digit])]
    assert f"{100 * test.accuracy:.2f} % on test" in out
    assert "mnist-5k" in out.splitlines()[0]
    assert "before" not in out


def test_before_is_what_the_base_has_stored(succeeds, finished_run, tuned, base):
    name, before, after = tuned.record.name, base.splits, tuned.evaluation.splits
    out = succeeds("evaluate", "--run", finished_run, "--adapter", name, err="")
    shown = rows(out.partition("Confusion")[0].splitlines())
    for i, split in enumerate(("val", "test")):
        counts = {str(d): (after[split].images[d], before[split].wrong[d], after[split].wrong[d]) for d in range(10)}
        counts["all"] = (after[split].count, before[split].errors, after[split].errors)
        for key, (images, was, now) in counts.items():
            assert [int(cell) for cell in shown[key][4 * i : 4 * i + 4]] == [images, was, now, now - was]
    assert f"{100 * before['test'].accuracy:.2f} → {100 * after['test'].accuracy:.2f} % on test" in out
    assert f"of the base (before) and of the base + {name} at strength 1 (after)" in joined(out.splitlines())


def test_evaluations_fit_80_columns(largest_evaluation):
    assert fits(tables.evaluation(largest_evaluation))
    assert fits(tables.evaluation(largest_evaluation, largest_evaluation))


# finetune and verify --------------------------------------------------------------------------------------------------


def test_fine_tuning_and_proofs_fit_80_columns(finished_run, tuned):
    splits = {split: changed(one, before=LARGEST, after=LARGEST) for split, one in tuned.analysis.splits.items()}
    assert fits(tables.finetuning(changed(tuned, analysis__splits=splits)))
    assert fits(tables.verification(verify(Request(run=finished_run))))


def test_a_failed_proof_cannot_be_overlooked(tuned):
    assert "FAILED  off" in "\n".join(printed(tables.proof(changed(tuned.record.proof, off__passed=False))))


def test_alternatives_stand_beside_the_adapter(tuned):
    pair = PairedControl(only_adapter_right=11, only_control_right=12, p=0.5)
    counts = ControlCounts(missed=7, false_alarms=8, errors=9, all=pair, digit=pair)
    threshold = changed(tuned.analysis.threshold, shift=1.25)
    control = ControlResult(scale=None, splits={"test": counts}, threshold=threshold, threshold_on_test=threshold)
    text = words(tables.finetuning(changed(tuned, analysis__control=control)))
    assert f"{tuned.analysis.threshold.shift:+.2f} on the logit of {tuned.record.digit}, by val" in text
    assert "control: uniform sampling, not kept" in text
    assert "11 are right with the adapter only" in text
    assert "p = 0.5" in text
    assert "control +1.25 on its logit, by val" in text


@pytest.mark.parametrize(("scale", "shown"), [(0.7, "Kept at 0.7 of the trained update"), (1.0, "Kept as trained: ")])
def test_how_much_of_the_update_was_kept(tuned, scale, shown):
    guard = GuardDecision(rule="errors", counted="errors", gain=0, before=LARGEST, tried=(), scale=scale)
    assert shown in words(tables.finetuning(changed(tuned, record__guard=guard)))


def test_an_adapter_that_was_not_kept_has_its_reason(refused):
    text = words(tables.finetuning(refused))
    assert "on val there are 10 errors in all without digit4-r2, and 11 or more with it" in text
    assert "One more" not in text
    assert "One more adapter has to lower them" in words(tables.finetuning(changed(refused, record__guard__gain=1)))
    tried = tuple(TriedScale(scale=s, missed=0, false_alarms=0, errors=3, worse=(4, 7)) for s in (1.0, 0.9))
    text = words(tables.finetuning(changed(refused, record__guard__tried=tried)))
    assert "with digit4-r2, more images of 4 and 7 on val are wrong than chance allows. --guard none" in text


def test_several_rounds_have_a_line_each(tuned, refused):
    text = words(tables.rounds([tuned, refused]))
    assert tuned.record.name in text
    assert "not kept" in text
    assert words(tables.rounds([tuned])) == ""


def test_a_rank_that_a_layer_cannot_use_is_named(tuned):
    parameters = tuned.record.parameters
    assert "no update" not in words(tables.parameters(parameters))
    layers = tuple(changed(row, lora_A=(11, row.lora_A[1])) for row in parameters.layers)
    text = words(tables.parameters(changed(parameters, layers=layers)))
    assert "Of linear3, 10 x 16, no update has a rank above 10." in text


# adapters and runs ----------------------------------------------------------------------------------------------------


def test_adapters_fit_80_columns_with_the_largest_counts():
    numbers = {"digit": 9, "rank": 16, "parameters": 2_807_010, "bytes": 11_228_040}
    line = AdapterLine(
        name="digit9-r16", method="svd", on_top_of=(), before=LARGEST, after=LARGEST, proof=True, **numbers
    )
    lines = tuple(changed(line, name=name) for name in ("digit9-r16", "digit4-r16"))
    listing = Listing(run="r", dataset="mnist", base_fingerprint="", digest="0" * 64, adapters=lines)
    assert fits(tables.adapters(listing))
    text = words(tables.adapters(listing))
    figures = "9 16 2.81 M 1135→1135 9999→9999 9999→9999 passed 11.2 MB"
    for figure in (figures, "9999→9999"):
        assert text.count(figure) >= 2
    long = changed(listing, adapters=(changed(line, name="a" * 64),))
    assert " ".join(("a" * 64, figures)) in words(tables.adapters(long))  # rather wider than without a part of it


def test_every_run_has_a_line_of_80_columns(cli, succeeds, run_copy, adapter):
    shutil.copytree(run_copy, run_copy.parent / "other")
    (run_copy.parent / "other" / "base" / "run.json").unlink()
    out = succeeds("runs", run_copy.parent, err="")
    assert max(len(line) for line in out.splitlines()[1:] if "/" not in line) <= 80
    (line,) = [line for line in out.splitlines() if line.startswith(" run ") and "mnist-5k" in line]
    assert "is damaged" in joined(out.splitlines())
    document = json.loads(cli("runs", run_copy.parent, "--json")[1])
    (digest,) = [one["digest"] for one in document["runs"] if "digest" in one]
    assert f" {digest[:8]}" in line


@pytest.mark.parametrize("change", [-1, 0])
def test_the_best_adapter_of_a_run_has_fewer_errors_than_its_base(run_copy, adapter, change):
    base = Run(run_copy).base.evaluation.splits["test"].errors
    with edited(adapter / "analysis.json") as analysis:
        analysis["splits"]["test"]["after"]["errors"] = base + change
    (line,) = list_runs(run_copy.parent).runs
    assert (line.best and line.best.name) == (adapter.name if change else None)


def test_a_folder_without_runs_says_so(cli, tmp_path):
    code, out, err = cli("runs", tmp_path)
    assert (code, joined(out.splitlines()), err) == (0, f"There is no run below {tmp_path}.", "")
    assert cli("runs", tmp_path / "none")[0] == 4


def test_a_run_without_adapters_has_a_line_too(cli, succeeds, run_copy, adapter, base):
    shutil.rmtree(adapter)
    out = succeeds("runs", run_copy.parent, err="")
    (line,) = [line for line in out.splitlines() if line.startswith(" run ") and "mnist-5k" in line]
    assert line.split()[2:8] == [f"{100 * base.splits['test'].accuracy:.2f}", "%", "0", "-", "-", "-"]
    listed = cli("adapters", "--run", run_copy)[1]
    assert joined(listed.splitlines()).startswith(f"{run_copy} has no adapters yet.")


# compare --------------------------------------------------------------------------------------------------------------


def pair(first: int = 1, second: int = 2, fixed: int = 0, broken: int = 0, p: float = 1.0, **more) -> PairOfNetworks:
    return PairOfNetworks(
        first=first, second=second, errors=verdict.McNemarResult(fixed=fixed, broken=broken, p=p), **more
    )


@pytest.fixture(scope="module")
def compared(finished_run) -> SideBySide:
    return compare([finished_run])


def several(compared: SideBySide, count: int) -> SideBySide:
    """So many networks, the last of which is the best, and all pairs."""
    networks = [changed(compared.networks[1], number=i, errors=1000 - i) for i in range(1, count + 1)]
    pairs = [pair(i, j) for i in range(1, count + 1) for j in range(i + 1, count + 1)]
    return SideBySide(networks=tuple(networks), pairs=tuple(pairs))


def test_compare_prints_what_the_json_says(cli, succeeds, finished_run, compared):
    out = succeeds("compare", finished_run, err="")
    adapter, test = compared.networks[1].adapter, compared.pairs[0]
    line = next(line for line in out.splitlines() if f" {adapter.name} " in line).split()
    figures = [f"{before}→{after}" for before, after in zip(adapter.before.numbers, adapter.after.numbers, strict=True)]
    assert line == ["2", adapter.name, str(adapter.digit), "2", f"{adapter.parameters:,}", *figures]
    line = next(line for line in out.splitlines() if "1 and 2" in line)
    assert line.split()[:6] == ["1", "and", "2", "all", str(test.errors.broken), str(test.errors.fixed)]
    assert f"the {adapter.digit}s" in out
    assert f"{finished_run}: mnist-5k, 1,000 test images" in joined(out.splitlines())
    document = json.loads(cli("compare", finished_run, "--json")[1])
    assert document == compared.model_dump(mode="json")


def test_compare_without_a_run_takes_the_default_one(cli, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "default").symlink_to(finished_run)
    assert cli("compare")[1].startswith("runs/default: ")


@pytest.mark.parametrize(
    ("fixed", "broken", "p", "shown"),
    [
        (9, 1, 0.0215, "2 is better"),
        (1, 9, 0.0215, "1 is better"),
        (3, 1, 0.625, "may be chance"),
        (2, 2, 1.0, "as good"),
        (0, 50, 1e-15, "<0.0001"),
    ],
)
def test_a_pair_says_which_is_better(compared, fixed, broken, p, shown):
    lines = printed(tables.side_by_side(changed(compared, pairs=(pair(fixed=fixed, broken=broken, p=p),))))
    line = next(line for line in lines if "1 and 2" in line)
    assert shown in line
    assert line.split()[4:6] == [str(broken), str(fixed)]


def test_of_too_many_pairs_those_with_the_best_are_shown(compared):
    def pairs(count, **options):
        text = words(tables.side_by_side(several(compared, count), **options))
        return re.findall(r"\d+ and \d+", text), text

    assert len(pairs(6)[0]) == tables.PAIRS
    shown, text = pairs(7)
    assert shown == [f"{i} and 7" for i in range(1, 7)]
    assert "Of 21 pairs, those with the network of fewest errors are shown; --verbose shows all." in text
    shown, text = pairs(7, every_pair=True)
    assert len(shown) == 21
    assert "are shown" not in text


def test_networks_with_other_test_images_are_named_and_not_tested(compared):
    other = changed(compared.networks[0], number=3, run="m", dataset__name="mnist", dataset__sha256="x")
    text = words(tables.side_by_side(changed(compared, networks=(*compared.networks, other))))
    assert "No test between networks whose test images differ: 1, 2 (mnist-5k) and 3 (mnist)." in text
    assert "and 3 all" not in text
    assert "differ" not in words(tables.side_by_side(compared))


def test_an_adapter_on_top_of_others_says_so(compared):
    upper = changed(compared.networks[1], number=3, adapter__on_top_of=("a", "b"))
    text = words(tables.side_by_side(SideBySide(networks=(upper,), pairs=())))
    assert "3 is with a, b on, before and after." in text
    assert "McNemar" not in text  # a network alone makes no pair


def test_comparisons_fit_80_columns(compared):
    name = "digit9-r16"
    line = changed(compared.networks[1].adapter, before=LARGEST, after=LARGEST, parameters=28_070_010, name=name)
    largest = changed(compared.networks[1], number=88, name=name, adapter=line, run="/a" * 20)
    tested = verdict.McNemarResult(fixed=9999, broken=9999, p=0.00015)
    pairs = (pair(88, 99, 9999, 9999, 0.00015, digit=9, missed=tested),)
    view = tables.side_by_side(SideBySide(networks=(largest, changed(largest, number=99)), pairs=pairs))
    assert fits(view)
    assert words(view).count("1135→1135") == 2


# doctor ---------------------------------------------------------------------------------------------------------------


def test_every_check_has_a_line_and_the_first_that_failed_gives_the_exit_code(cli, tmp_path, monkeypatch):
    checks = (
        Check(name="disk", finding="5 GB free"),
        Check(name="data", finding="t10k is gone", way_out="Delete it.", exit_code=3),
        Check(name="runs/x", finding="no base", way_out="Make it.", exit_code=4),
    )
    diagnosis = Diagnosis(passed=False, checks=checks)
    asked = []
    module = import_module("lora_mnist.pipeline.doctor")
    monkeypatch.setattr(module, "doctor", lambda *given: asked.append(given) or diagnosis)
    code, out, err = cli("doctor", tmp_path, "--data", tmp_path / "d", "--device", "cpu", "--threads", "3")
    assert (code, err) == (3, "")
    assert asked == [(tmp_path, tmp_path / "d", "cpu", 3)]
    assert out.splitlines() == [
        "good  disk: 5 GB free",
        "BAD   data: t10k is gone. Delete it.",
        "BAD   runs/x: no base. Make it.",
        "2 of 3 are not good.",
    ]
    code, out, _ = cli("doctor", tmp_path, "--json")
    assert (code, json.loads(out)) == (3, json.loads(diagnosis.model_dump_json()))
