"""What is printed fits 80 columns and says what the JSON says."""

import io

import pytest
from rich.console import Console

from lora_mnist.cli import tables as terminal
from lora_mnist.evaluation.results import (
    ControlCounts,
    ControlResult,
    Counts,
    GuardDecision,
    PairedControl,
    TriedScale,
)
from lora_mnist.pipeline import FinetuneResult, Request, verify
from lora_mnist.runs.run import Run

LARGEST = Counts(missed=1135, false_alarms=9999, errors=9999)


def printed(renderable, **options) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False, **options)
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def tuned(finished_run) -> FinetuneResult:
    (adapter,) = Run(finished_run).adapters()
    return FinetuneResult(
        record=adapter.finetune, provenance=adapter.provenance, analysis=adapter.analysis, evaluation=adapter.evaluation
    )


def changed(document, **changes):
    """The same with other values, `record__digit=4` for one further in."""
    for key, value in changes.items():
        first, _, rest = key.partition("__")
        value = changed(getattr(document, first), **{rest: value}) if rest else value
        document = document.model_copy(update={first: value})
    return document


def words(renderable) -> str:
    """What is printed, without the places where its lines break."""
    return " ".join(printed(renderable).split())


def test_everything_fits_80_columns_even_with_the_largest_counts(finished_run, tuned):
    def largest(splits, **counts):
        return {split: changed(one, **counts) for split, one in splits.items()}

    evaluation = Run(finished_run).base.evaluation
    wrong = {"wrong": (1135,) * 10, "confusion": ((1135,) * 10,) * 10}
    evaluation = changed(evaluation, splits=largest(evaluation.splits, **wrong))
    tuning = changed(tuned, analysis__splits=largest(tuned.analysis.splits, before=LARGEST, after=LARGEST))
    findings = verify(Request(run=finished_run))
    for view in (terminal.evaluation(evaluation), terminal.finetuning(tuning), terminal.verification(findings)):
        lines = printed(view).splitlines()
        assert max(map(len, lines)) <= 80
        assert "…" not in "".join(lines)


def test_errors_per_digit_stand_in_the_table(finished_run):
    evaluation = Run(finished_run).base.evaluation
    lines = printed(terminal.evaluation(evaluation)).splitlines()
    test = evaluation.splits["test"]
    for digit in range(10):
        cells = next(line for line in lines if line.split()[:1] == [str(digit)]).split()
        assert cells[5] == str(test.wrong[digit])
    assert any(f"{100 * test.accuracy:.2f} % on test" in line for line in lines)
    assert "not MNIST" in lines[0]


def test_the_repair_is_shown_with_its_side_effects(tuned):
    text = printed(terminal.finetuning(tuned))
    digit = tuned.record.digit
    rows = (f"missed {digit}s", "false alarms", "all errors", f"{digit} (target)")
    for row in (*rows, "frozen", "bit-identical"):
        assert row in text


def test_a_failed_proof_cannot_be_overlooked(tuned):
    assert "FAILED  off" in printed(terminal.proof(changed(tuned.record.proof, off__passed=False)))


def test_without_colour_there_are_no_escapes(tuned):
    assert "\x1b" in printed(terminal.finetuning(tuned), force_terminal=True, color_system="standard")
    assert "\x1b" not in printed(terminal.finetuning(tuned))


def test_alternatives_stand_beside_the_repair(tuned):
    pair = PairedControl(only_adapter_right=11, only_control_right=12, p=0.5)
    counts = ControlCounts(missed=7, false_alarms=8, errors=9, all=pair, digit=pair)
    shifted = changed(tuned.analysis.threshold, shift=1.25)
    control = ControlResult(scale=None, splits={"test": counts}, threshold=shifted)
    text = words(terminal._alternatives(tuned.record, changed(tuned.analysis, control=control)))
    assert f"{tuned.analysis.threshold.shift:+.2f} on the logit of {tuned.record.digit}, by val" in text
    assert "control: uniform sampling, not kept" in text
    assert "11 are right with the adapter only" in text
    assert "p = 0.5" in text
    assert "control +1.25 on its logit, by val" in text


def test_what_was_not_kept_says_why(tuned):
    before = Counts(missed=3, false_alarms=4, errors=10)
    tried = tuple(TriedScale(scale=s, missed=0, false_alarms=0, errors=n) for s, n in ((1.0, 12), (0.9, 11)))
    guard = GuardDecision(rule="errors", counted="errors", gain=0, before=before, tried=tried, scale=None)
    refused = FinetuneResult(record=changed(tuned.record, name="x", digit=3, guard=guard), provenance=tuned.provenance)
    text = words(terminal.finetuning(refused))
    assert "on val there are 10 errors in all without x, and 11 or more with it" in text
    assert "One more" not in text
    text = words(terminal.finetuning(changed(refused, record__guard__gain=1)))
    assert "One more adapter has to lower them" in text
    hurting = tuple(TriedScale(scale=s, missed=0, false_alarms=0, errors=3, worse=(4, 7)) for s in (1.0, 0.9))
    text = words(terminal.finetuning(changed(refused, record__guard__tried=hurting)))
    assert "with x, more images of 4 and 7 on val are wrong than chance allows. --guard none" in text


def test_how_much_of_the_update_was_kept(tuned):
    for strength, told in ((0.7, "Kept at 0.7 of the trained update"), (1.0, "Kept as trained: ")):
        guard = GuardDecision(rule="errors", counted="errors", gain=0, before=LARGEST, tried=(), scale=strength)
        assert told in printed(terminal.finetuning(changed(tuned, record__guard=guard)))


def test_the_path_of_several_rounds(tuned):
    refused = FinetuneResult(record=changed(tuned.record, digit=4), provenance=tuned.provenance)
    text = printed(terminal.path([tuned, refused]))
    assert tuned.record.name in text
    assert "not kept" in text
    assert printed(terminal.path([tuned])).strip() == ""


def test_a_rank_that_a_layer_cannot_use_is_named(tuned):
    table = tuned.record.parameters
    assert "no update" not in printed(terminal.parameters(table))
    rows = tuple(changed(row, lora_A=(11, row.lora_A[1])) for row in table.layers)
    assert "Of linear3, 10 x 16, no update has a rank above 10." in printed(
        terminal.parameters(changed(table, layers=rows))
    )
