"""The answer first: how many lines it takes, and that its numbers are those that were stored."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from lora_mnist.cli import results, tables
from lora_mnist.evaluation.results import Counts, GuardDecision, TriedScale
from lora_mnist.evaluation.verdict import side_effects, verdict_of
from lora_mnist.pipeline import FinetuneResult, Request, RunResult, verify
from lora_mnist.pipeline.pretrain import pretrain
from lora_mnist.pipeline.run import Done
from lora_mnist.runs.run import Run

from ..conftest import smoke
from .test_tables import changed

HERE = Path("runs/default")


def printed(*renderables, width=80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for renderable in renderables:
        console.print(renderable, crop=False)
    return console.file.getvalue().splitlines()


def joined(*renderables) -> str:
    return " ".join(" ".join(printed(*renderables)).split())


@pytest.fixture(scope="module")
def tuned(finished_run) -> FinetuneResult:
    (adapter,) = Run(finished_run).adapters()
    return FinetuneResult(
        record=adapter.finetune, provenance=adapter.provenance, analysis=adapter.analysis, evaluation=adapter.evaluation
    )


@pytest.fixture(scope="module")
def whole(finished_run, tuned) -> RunResult:
    pretraining = pretrain(smoke(finished_run), resume=True)[1]
    verification = verify(Request(run=finished_run))
    overall = tuned.analysis.splits
    return RunResult(pretraining=pretraining, rounds=(tuned,), overall=overall, verification=verification)


@pytest.fixture
def refused(tuned) -> FinetuneResult:
    tried = (TriedScale(scale=1.0, missed=0, false_alarms=0, errors=12),)
    before = Counts(missed=3, false_alarms=4, errors=10)
    guard = GuardDecision(rule="errors", counted="errors", gain=0, before=before, tried=tried, scale=None)
    return FinetuneResult(
        record=changed(tuned.record, name="digit4-r2", digit=4, guard=guard), provenance=tuned.provenance
    )


def worst(tuned) -> FinetuneResult:
    """Long in every part: nine digits pay, the control was trained, counts are large, the strength was lowered."""
    large = Counts(missed=1135, false_alarms=9999, errors=9999)
    digit, change = tuned.record.digit, {"before": large, "after": changed(large, missed=1000, errors=10_999)}
    fixed = tuple(300 if one == digit else 0 for one in range(10))
    broken = tuple(0 if one == digit else 999 for one in range(10))
    test = changed(tuned.analysis.splits["test"], **change, fixed=fixed, broken=broken)
    test = changed(test, pairs__missed__fixed=300, pairs__errors__broken=9000)
    val = changed(
        test,
        before=Counts(missed=113, false_alarms=99, errors=943),
        after=Counts(missed=100, false_alarms=999, errors=999),
    )
    splits = {"val": val, "test": test}
    analysis = changed(tuned.analysis, splits=splits)
    guard = GuardDecision(rule="errors", counted="errors", gain=0, before=large, tried=(), scale=0.7)
    return changed(tuned, analysis=analysis, record__guard=guard, record__on_top_of=("digit5-r32", "digit3-r32"))


# One digit ------------------------------------------------------------------------------------------------------------


def test_finetuning_takes_16_lines_at_most(tuned):
    assert len(printed(results.finetuning(tuned, HERE))) <= 16
    lines = printed(results.finetuning(worst(tuned), HERE))
    assert "forgot others" in lines[0]
    assert len(lines) <= 16
    assert max(map(len, lines)) <= 80


def test_the_verdict_comes_first_and_its_facts_are_the_stored_ones(tuned):
    verdict, text = verdict_of(tuned.analysis, tuned.record.digit), joined(results.finetuning(tuned, HERE))
    assert text.startswith(verdict.headline)
    for part in (verdict.side_effects, verdict.compared):
        assert part in text
    for split, part in tuned.analysis.splits.items():
        assert f"{split}, of {tuned.evaluation.splits[split].count}" in text
        for before, after in zip(part.before.numbers, part.after.numbers, strict=True):
            assert f"{before} → {after}" in text
    assert f"{tuned.record.parameters.added:,} numbers" in text
    assert f"{HERE}/adapters/{tuned.record.name}" in text


def test_the_rows_are_missed_claimed_errors_with_val_before_test(tuned):
    lines = printed(results.finetuning(tuned, HERE))
    rows = [line for line in lines if "→" in line]
    assert [row.split()[0] for row in rows] == ["missed:", "false", "all"]
    splits = tuned.analysis.splits
    for row, key in zip(rows, ("missed", "false_alarms", "errors"), strict=True):
        pairs = re.findall(r"(\d+) → (\d+)", row)
        wanted = [(splits[split].before.of(key), splits[split].after.of(key)) for split in ("val", "test")]
        assert [tuple(map(int, pair)) for pair in pairs] == wanted


def test_what_was_not_kept_is_not_said_to_be_saved(refused):
    text = joined(results.finetuning(refused, HERE))
    assert text == tables.not_kept(refused.record)


@pytest.mark.parametrize("width", [50, 80])
def test_no_number_is_cut_however_narrow_the_terminal(tuned, width):
    text = "\n".join(printed(results.finetuning(tuned, HERE), width=width))
    assert "…" not in text
    test = tuned.analysis.splits["test"]
    for before, after in zip(test.before.numbers, test.after.numbers, strict=True):
        assert f"{before} → {after}" in text


# The base -------------------------------------------------------------------------------------------------------------


def test_pretraining_says_how_sure_it_is_of_the_weakest_digit(whole):
    document = whole.pretraining
    text = joined(results.pretraining(document))
    found = document.weakest
    assert f"Weakest on val: {found.digit}, {found.wrong} of {found.images} wrong" in text
    assert f"95 % interval {100 * found.low:.1f} to {100 * found.high:.1f} %" in text
    for split, part in document.splits.items():
        assert f"{split}, of {part.count} " + " ".join(map(str, (*part.wrong, part.errors))) in text


def test_without_val_no_digit_is_named(whole):
    assert "name one with --digit" in joined(results.pretraining(changed(whole.pretraining, weakest=None)))


# `run` ----------------------------------------------------------------------------------------------------------------


def lines_of_run(whole, rounds=1, skipped=False) -> list[str]:
    stages = results.Stages(rounds)
    done = [whole.pretraining, *whole.rounds, whole.verification]
    shown = [stages.after(Done(one, 1.5, skipped and one is not whole.verification)) for one in done]
    if stages.finished:
        return printed(*shown, results.finished(whole, HERE / "report" / "index.html"))
    return printed(*shown, results.report_line(HERE / "report" / "index.html", 1.5), results.whole(whole, HERE))


def test_run_takes_24_lines_at_most(whole, tuned):
    assert len(lines_of_run(whole)) <= 24
    bad = changed(worst(tuned), record__on_top_of=())
    lines = lines_of_run(changed(whole, rounds=(bad,), overall=bad.analysis.splits))
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_a_stage_has_its_number_and_its_time(whole):
    starts = [line for line in lines_of_run(whole) if re.match(r"\d/4", line)]
    assert [re.split(r" {2,}", line)[:2] for line in starts] == [
        [f"{i}/4 {name}", "1.5 s"] for i, name in enumerate(("pretrain", "finetune", "verify", "report"), 1)
    ]


def test_rounds_take_a_line_each_with_the_figures_of_val(whole, tuned):
    five = changed(whole, rounds=tuple(changed(tuned, record__digit=digit) for digit in (9, 8, 5, 3, 2)))
    lines = lines_of_run(five, rounds=5)
    assert len(lines) <= 30
    rows = [line for line in lines if line.startswith("    round")]
    val = tuned.analysis.splits["val"]
    for i, (row, digit) in enumerate(zip(rows, (9, 8, 5, 3, 2), strict=True), 1):
        assert re.match(rf"    round {i} +1\.5 s +{digit} ", row)
        moved = [tuple(map(int, pair)) for pair in re.findall(r"(\d+) → (\d+)", row)]
        assert moved == list(zip(val.before.numbers, val.after.numbers, strict=True))
    assert f"5 rounds kept: all errors {val.before.errors} → {val.after.errors} on val" in "\n".join(lines)
    assert side_effects(whole.overall["test"]) in " ".join(" ".join(lines).split())


def test_rounds_stay_within_30_lines_at_their_longest(whole, tuned, refused):
    bad = worst(tuned)
    rounds = tuple(changed(bad, record__digit=digit, record__name=f"digit{digit}-r32-2") for digit in (9, 8, 5, 3))
    long = changed(whole, rounds=(*rounds, refused), overall=bad.analysis.splits)
    lines = lines_of_run(long, rounds=5)
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "4  not kept" in "\n".join(lines)
    assert tables.not_kept(refused.record) in text


def test_a_run_that_kept_nothing_says_so_twice(whole, refused):
    lines = lines_of_run(changed(whole, rounds=(refused,)))
    assert any(line.endswith("digit4-r2, on digit 4: not kept") for line in lines)
    assert tables.not_kept(refused.record) in " ".join(" ".join(lines).split())
    assert not any(line.startswith(("saved", "to use it")) for line in lines)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_finished_run_takes_three_lines(whole, rounds):
    lines = lines_of_run(changed(whole, rounds=whole.rounds * rounds), rounds, skipped=True)
    assert len(lines) == 3
    assert lines[0].startswith("Finished already: ")
    test = whole.overall["test"]
    assert f"{test.before.errors} → {test.after.errors} errors on test." in lines[0]
    assert max(map(len, lines)) <= 80


def test_a_finished_run_that_ended_with_a_refusal_says_so(whole, refused):
    several = changed(whole, rounds=(*whole.rounds, refused))
    lines = lines_of_run(several, 5, skipped=True)
    assert len(lines) == 3
    text = " ".join(" ".join(lines).split())
    assert text.startswith("Finished already: 1 round, ")
    assert "errors on test; digit4-r2 was refused." in text
    lines = lines_of_run(changed(whole, rounds=(refused,)), skipped=True)
    assert lines[:2] == ["Finished already: nothing is kept.", "The guard refused digit4-r2. --force trains again."]


def test_stages_that_were_finished_before_are_shown_once_something_is_done(whole, tuned):
    stages = results.Stages(1)
    assert printed(stages.after(Done(whole.pretraining, 0.1, True))) == []
    lines = printed(stages.after(Done(tuned, 2.5, False)))
    assert lines[0].startswith("1/4 pretrain  before")
    assert any(line.startswith("2/4 finetune   2.5 s") for line in lines)
    assert not stages.finished
