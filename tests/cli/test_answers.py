"""The answer first: how many lines it takes, and that its numbers are those that were stored."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_mnist.cli import answers, tables
from lora_mnist.evaluation.results import Counts, GuardDecision
from lora_mnist.evaluation.verdict import changes_by_digit, side_effects, verdict_of
from lora_mnist.pipeline import FinetuneResult, Request, RunResult, finetune_full, verify
from lora_mnist.pipeline.convert import extract
from lora_mnist.pipeline.pretrain import pretrain
from lora_mnist.pipeline.run_all import StageDone
from lora_mnist.runs.run import Run
from lora_mnist.training import train as recipe

from ..conftest import drawings_of, smoke, snapshot, workspace, write_drawings
from .conftest import changed, joined, printed, words

HERE = Path("runs/default")
PAGE = HERE / "report" / "index.html"
BALANCED, RARE = SimpleNamespace(rare=None, source=None), SimpleNamespace(rare="saw 9 nines", source=None)
IMPORTED = SimpleNamespace(rare=None, source="net.pt")


@pytest.fixture(scope="module")
def whole(finished_run, tuned) -> RunResult:
    pretraining = pretrain(smoke(finished_run), resume=True)[1]
    verification = verify(Request(run=finished_run))
    overall = tuned.analysis.splits
    return RunResult(pretraining=pretraining, rounds=(tuned,), overall=overall, verification=verification)


@pytest.fixture(scope="module")
def longest(tuned) -> FinetuneResult:
    """Long in every part: nine digits are worse, counts are large, the strength was lowered, two adapters are below."""
    large = Counts(missed=1135, false_alarms=9999, errors=9999)
    digits = range(10)
    test = changed(
        tuned.analysis.splits["test"],
        before=large,
        after=changed(large, missed=1000, errors=10_999),
        fixed=tuple(300 if digit == tuned.record.digit else 0 for digit in digits),
        broken=tuple(0 if digit == tuned.record.digit else 999 for digit in digits),
        pairs__missed__fixed=300,
        pairs__errors__broken=9000,
    )
    val = changed(
        test,
        before=Counts(missed=113, false_alarms=99, errors=943),
        after=Counts(missed=100, false_alarms=999, errors=999),
    )
    guard = GuardDecision(rule="errors", counted="errors", gain=0, before=large, tried=(), scale=0.7)
    below = ("digit5-r32", "digit3-r32")
    splits = {"val": val, "test": test}
    return changed(tuned, analysis__splits=splits, record__guard=guard, record__on_top_of=below)


# finetune and pretrain ------------------------------------------------------------------------------------------------


def test_finetuning_takes_17_lines_at_most(longest):
    lines = printed(answers.finetuning(longest, HERE, RARE))
    assert "forgot others" in lines[0]
    assert len(lines) <= 17
    assert max(map(len, lines)) <= 80


def test_the_verdict_comes_first_and_its_facts_are_the_stored_ones(tuned):
    verdict, text = verdict_of(tuned.analysis, tuned.record.digit), words(answers.finetuning(tuned, HERE, RARE))
    assert text.startswith(verdict.headline)
    for part in (verdict.side_effects, verdict.compared):
        assert part in text
    for split in tuned.analysis.splits:
        assert f"{split}, of {tuned.evaluation.splits[split].count:,}" in text
    test, digit = tuned.analysis.splits["test"], tuned.record.digit
    images = tuned.evaluation.splits["test"].images[digit]
    was, now = (  # 2 TP / (2 TP + FN + FP)
        200 * (images - one.missed) / (2 * images - one.missed + one.false_alarms) for one in (test.before, test.after)
    )
    seconds = f"{tuned.provenance.seconds:.1f} s on cpu"
    assert f"trained in {seconds}; F1 of the {digit}s {was:.1f} → {now:.1f} % on test" in text
    assert f"{tuned.record.parameters.added:,} numbers" in text
    assert f"{HERE}/adapters/{tuned.record.name}" in text


@pytest.mark.parametrize("width", [50, 80])
def test_the_rows_have_val_before_test_and_no_number_is_cut(tuned, width):
    lines = printed(answers.finetuning(tuned, HERE, RARE), width=width)
    assert "…" not in "".join(lines)
    numbers = [re.findall(r"([\d.]+) → ([\d.]+)", line) for line in lines if line.count("→") == 2]
    rows = [tuple(tuple(map(float, pair)) for pair in row) for row in numbers]
    stored = {"val": [], "test": []}
    for split, found in stored.items():
        part, after = tuned.analysis.splits[split], tuned.evaluation.splits[split]
        found += zip(part.before.numbers, part.after.numbers, strict=True)
        found.append((round(100 - 100 * part.before.errors / after.count, 2), round(100 * after.accuracy, 2)))
    assert rows == list(zip(stored["val"], stored["test"], strict=True))


def test_an_adapter_that_was_not_kept_is_not_said_to_be_saved(refused):
    text = words(answers.finetuning(refused, HERE, RARE))
    assert text.startswith(tables.not_kept(refused.record))
    assert "saved" not in text


def test_the_next_step_is_the_report_of_a_repair_or_a_base_with_a_weakness(tuned, refused):
    def last(one, base):
        return printed(answers.next_step(one, HERE, base))[-1]

    for kind in ("repair", "side effect", "not repaired"):
        verdict = tuned.verdict.model_copy(update={"kind": kind})
        one = SimpleNamespace(verdict=verdict, kept=True, record=tuned.record)
        command = "run --config rare --run runs/rare" if kind == "not repaired" else "report --open"
        assert last(one, BALANCED).endswith(f"lora-mnist {command}")
        for base in (RARE, IMPORTED):
            assert last(one, base).endswith("lora-mnist report --open")
    assert last(refused, BALANCED).endswith("lora-mnist run --config rare --run runs/rare")
    assert last(refused, RARE).endswith(f"lora-mnist finetune --digit {refused.record.digit} --guard none")


def test_pretraining_says_how_sure_it_is_of_the_weakest_digit(whole):
    found, text = whole.pretraining.weakest, words(answers.pretraining(whole.pretraining))
    assert f"Weakest on val: {found.digit}, {found.wrong} of {found.images} wrong" in text
    assert f"95 % interval {100 * found.low:.1f} to {100 * found.high:.1f} %" in text
    for split, part in whole.pretraining.splits.items():
        assert f"{split}, of {part.count:,} " + " ".join(map(str, (*part.wrong, part.errors))) in text
    assert "name one with --digit" in words(answers.pretraining(changed(whole.pretraining, weakest=None)))


def test_an_import_has_shares_below_its_counts(succeeds, finished_run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = succeeds("import", finished_run / "base" / "model.safetensors", "--dataset", "mnist-5k", "--run", tmp_path)
    lines = [line.split() for line in out.splitlines()]
    for split, part in Run(tmp_path).base.evaluation.splits.items():
        place = next(i for i, line in enumerate(lines) if line[:1] == [f"{split},"])
        counts, shares = lines[place][3:], lines[place + 1][3:]
        images = (*part.images, part.count)
        assert shares == [f"{100 * int(count) / of:.1f}" for count, of in zip(counts, images, strict=True)]


# run ------------------------------------------------------------------------------------------------------------------


def lines_of_run(whole, rounds=1, skipped=False) -> list[str]:
    stages = [whole.pretraining, *whole.rounds, whole.verification]
    done = [StageDone(one, 1.5, skipped and one is not whole.verification) for one in stages]
    shown = [line for i in range(1, len(done) + 1) for line in answers.stage_lines(done[:i], rounds)]
    if answers.was_finished(done):
        return printed(*shown, answers.nothing_to_do(whole, PAGE))
    return printed(*shown, answers.stage_line("4/4 report", "1.5 s", str(PAGE)), answers.run_done(whole, HERE))


def test_run_takes_24_lines_at_most(whole, longest):
    assert len(lines_of_run(whole)) <= 24
    first = changed(longest, record__on_top_of=())
    lines = lines_of_run(changed(whole, rounds=(first,), overall=first.analysis.splits))
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_a_stage_has_its_number_and_its_time(whole):
    starts = [line for line in lines_of_run(whole) if re.match(r"\d/4", line)]
    assert [re.split(r" {2,}", line)[:2] for line in starts] == [
        [f"{i}/4 {name}", "1.5 s"] for i, name in enumerate(("pretrain", "finetune", "verify", "report"), 1)
    ]


def test_rounds_take_a_line_each_with_the_figures_of_val(whole, tuned):
    digits = (9, 8, 5, 3, 2)
    lines = lines_of_run(changed(whole, rounds=tuple(changed(tuned, record__digit=digit) for digit in digits)), 5)
    assert len(lines) <= 30
    rows = [line for line in lines if line.startswith("    round")]
    val = tuned.analysis.splits["val"]
    for i, (row, digit) in enumerate(zip(rows, digits, strict=True), 1):
        assert re.match(rf"    round {i} +1\.5 s +{digit} ", row)
        moved = [tuple(map(int, pair)) for pair in re.findall(r"(\d+) → (\d+)", row)]
        assert moved == list(zip(val.before.numbers, val.after.numbers, strict=True))
    assert f"5 rounds kept: all errors {val.before.errors} → {val.after.errors} on val" in "\n".join(lines)
    assert side_effects(changes_by_digit(whole.overall["test"])) in joined(lines)


def test_rounds_stay_within_30_lines_at_their_longest(whole, longest, refused):
    names = {digit: f"digit{digit}-r32-2" for digit in (9, 8, 5, 3)}
    rounds = (changed(longest, record__digit=digit, record__name=name) for digit, name in names.items())
    lines = lines_of_run(changed(whole, rounds=(*rounds, refused), overall=longest.analysis.splits), rounds=5)
    assert len(lines) <= 30
    (to_copy,) = [line for line in lines if line.startswith("to use it")]  # one line however long
    assert to_copy.endswith(" ".join(f"--adapter {name}" for name in names.values()))
    assert max(len(line) for line in lines if line != to_copy) <= 80
    rows = [line for line in lines if line.startswith("    round")]
    assert all(row.endswith("errors 943 → 999") for row in rows[:4])
    assert rows[4].endswith("4  not kept")
    assert tables.not_kept(refused.record) in joined(lines)


def test_a_run_that_kept_nothing_says_so_twice(whole, refused):
    lines = lines_of_run(changed(whole, rounds=(refused,)))
    assert any(line.endswith("digit4-r2, on digit 4: not kept") for line in lines)
    assert tables.not_kept(refused.record) in joined(lines)
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
    lines = lines_of_run(changed(whole, rounds=(*whole.rounds, refused)), 5, skipped=True)
    assert len(lines) == 3
    assert joined(lines).startswith("Finished already: 1 round, ")
    assert "errors on test; digit4-r2 was refused." in joined(lines)
    lines = lines_of_run(changed(whole, rounds=(refused,)), skipped=True)
    assert lines[:2] == ["Finished already: nothing is kept.", "The guard refused digit4-r2. --force trains again."]


def test_stages_that_were_finished_before_are_shown_once_something_is_done(whole, tuned):
    there, done = StageDone(whole.pretraining, 0.1, True), StageDone(tuned, 2.5, False)
    assert answers.stage_lines([there], 1) == []
    lines = printed(*answers.stage_lines([there, done], 1))
    assert lines[0].startswith("1/4 pretrain  before")
    assert any(line.startswith("2/4 finetune   2.5 s") for line in lines)
    assert not answers.was_finished([there, done])


# extract --------------------------------------------------------------------------------------------------------------


def test_an_extracted_adapter_takes_17_lines_at_most(run_copy):
    finetune_full(workspace(run_copy, digit=3))
    extracted = extract(workspace(run_copy), rank=2)
    lines = printed(answers.finetuning(extracted, HERE, RARE))
    assert len(lines) <= 17
    assert max(map(len, lines)) <= 80
    facts, test = extracted.record.extraction, extracted.analysis.splits["test"]
    energies, after = [100 * layer.energy for layer in facts.layers.values()], facts.of_checkpoint
    for part in (
        f"{min(energies):.3g} to {max(energies):.3g} % of the change's energy",
        f"digit3-full: {after.missed:,} missed, {after.false_alarms:,} false alarms, {after.errors:,} errors in all",
        f"where the adapter has {test.after.errors:,}",
    ):
        assert part in joined(lines)
    assert lines[-1].endswith("lora-mnist report --open")


# teach ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawings(tmp_path) -> Path:
    return write_drawings(tmp_path / "drawings", drawings_of("mnist-5k"))


def test_a_lesson_takes_16_lines_at_most(cli, run_copy, drawings, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(run_copy.parent)
    code, out, err = cli("teach", drawings, "--run", "run")
    assert code == 0, err
    assert len(out.splitlines()) <= 16
    lesson = Run(run_copy).adapter("taught").finetune.lesson
    assert joined(out.splitlines()).startswith(lesson.verdict.words)
    for part in (
        f"{lesson.unseen.before} → {lesson.unseen.after}",
        f"{lesson.before} → {lesson.after}",
        f"{lesson.val.before} → {lesson.val.after}",
        "mnist-5k",
        "proof     passed",
        "saved     run/adapters/taught",
        "lora-mnist report --run run --open",
    ):
        assert part in out
    assert "teaching: 20 steps" in err
    assert "taught was taught 30 drawings" in cli("adapters", "--run", run_copy)[1]


def test_a_dry_run_says_the_same_and_keeps_nothing(succeeds, run_copy, drawings):
    before = snapshot(run_copy)
    dry = succeeds("teach", drawings, "--run", run_copy, "--dry-run")
    assert snapshot(run_copy) == before
    assert "leave out --dry-run" in dry
    kept = succeeds("teach", drawings, "--run", run_copy)
    assert kept.partition("proof")[0] == dry.partition("not kept")[0]


def test_a_lesson_as_json_and_quietly(cli, succeeds, run_copy, drawings):
    out = succeeds("teach", drawings, "--run", run_copy, "--json", "--name", "one", "--steps", 5, "--seed", 3)
    document, record = json.loads(out), Run(run_copy).adapter("one").finetune
    assert document["kept"] is True
    assert document["folder"] == str(run_copy / "adapters" / "one")
    assert document["lesson"] == record.lesson.model_dump(mode="json")
    assert document["verdict"]["words"] == record.lesson.verdict.words
    assert (record.settings.steps, record.seed) == (5, 3)
    folder = run_copy / "adapters" / "two"
    assert cli("teach", drawings, "--run", run_copy, "--quiet", "--name", "two", "--steps", 5) == (0, f"{folder}\n", "")


def test_a_lesson_that_the_guard_refuses_has_a_way_out(cli, run_copy, drawings):
    config = run_copy.parent / "harsh.toml"
    config.write_text("[teach]\nlearning_rate = 0.3\nshare = 1.0\n")
    before = snapshot(run_copy)
    options = ("--run", run_copy, "--config", config, "--guard", "errors", "--steps", 30)
    code, out, _ = cli("teach", drawings, *options)
    assert code == 7
    assert out.startswith("Not kept: the guard allows no scale")
    assert "--guard none" in out
    assert snapshot(run_copy) == before


@pytest.mark.parametrize(
    ("options", "code", "shown"),
    [
        ("--name ../up", 2, "teach.name"),
        ("--name ADAPTER", 4, "finished already"),
        ("--steps 0", 2, "teach.steps"),
        ("--share 0.001", 2, "share"),
        ("--run nowhere", 4, "no base"),
    ],
)
def test_a_lesson_that_cannot_end_well_is_refused_before_it_trains(
    fails, run_copy, adapter, drawings, monkeypatch, options, code, shown
):
    monkeypatch.setattr(recipe, "train", None)  # calling it would be a bug with exit code 1
    before = snapshot(run_copy)
    fails(code, "teach", drawings, "--run", run_copy, *options.replace("ADAPTER", adapter.name).split(), says=shown)
    assert snapshot(run_copy) == before
