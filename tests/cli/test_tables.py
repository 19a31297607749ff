"""What is printed fits 80 columns and says what the JSON says."""

import io

import pytest
from rich.console import Console

from lora_mnist.cli import tables as terminal
from lora_mnist.pipeline import stages
from lora_mnist.runs.rundir import Run
from lora_mnist.settings.request import Request


def printed(renderable, **options) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False, **options)
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def tuned(finished_run):
    run = Run(finished_run)
    name = run.adapter_names()[0]
    document = run.document(run.adapter(name), "finetune.json")
    analysis = run.document(run.adapter(name), "analysis.json")
    rest = {"comparison": analysis["splits"], "threshold": analysis["threshold"], "kept": True}
    return {**document, **rest, "evaluation": run.evaluation(run.adapter(name))}


def test_everything_fits_80_columns_even_with_the_largest_counts(finished_run, tuned):
    evaluation = Run(finished_run).evaluation()
    for split in evaluation["splits"].values():
        split["confusion"] = [[1135] * 10] * 10
        split["wrong"] = [1135] * 10
    for split in tuned["comparison"].values():
        split["before"] = split["after"] = {"missed": 1135, "claimed": 9999, "errors": 9999}
    findings = stages.verify(Request(run=finished_run))
    for view in (terminal.evaluation(evaluation), terminal.finetuning(tuned), terminal.verification(findings)):
        lines = printed(view).splitlines()
        assert max(map(len, lines)) <= 80
        assert "…" not in "".join(lines)


def test_errors_per_digit_stand_in_the_table(finished_run):
    evaluation = Run(finished_run).evaluation()
    lines = printed(terminal.evaluation(evaluation)).splitlines()
    test = evaluation["splits"]["test"]
    for digit in range(10):
        cells = next(line for line in lines if line.startswith(f"│ {digit} ")).split("│")
        assert cells[6].strip() == str(test["wrong"][digit])
    assert any(f"{100 * test['accuracy']:.2f} % on test" in line for line in lines)
    assert "not MNIST" in lines[0]


def test_the_repair_is_told_with_its_price(tuned):
    text = printed(terminal.finetuning(tuned))
    digit = tuned["digit"]
    rows = (f"missed {digit}s", f"claimed as {digit}", "all errors", f"{digit} (target)")
    for words in (*rows, "frozen", "bit-identical"):
        assert words in text


def test_a_failed_proof_cannot_be_overlooked(tuned):
    findings = {**tuned["proof"], "off": {**tuned["proof"]["off"], "passed": False}}
    assert "FAILED  off" in printed(terminal.proof(findings))


def test_without_colour_there_are_no_escapes(tuned):
    assert "\x1b" in printed(terminal.finetuning(tuned), force_terminal=True, color_system="standard")
    assert "\x1b" not in printed(terminal.finetuning(tuned))


def test_the_excuses_stand_beside_the_repair(tuned):
    twin = {"missed": 7, "claimed": 8, "errors": 9}
    pair = {"only_adapter_right": 11, "only_twin_right": 12, "p": 0.5}
    twin = {"strength": None, "splits": {"test": {**twin, "all": pair, "digit": pair}}}
    text = " ".join(printed(terminal.excuses({**tuned, "twin": twin})).split())
    threshold = tuned["threshold"]
    assert f"{threshold['shift']:+.2f} on the logit of {tuned['digit']}, by val" in text
    assert "twin, natural share, not kept" in text
    assert "11 are right with the adapter only" in " ".join(text.split())
    assert "p = 0.5" in text


def test_what_was_not_kept_says_why():
    tried = [{"errors": 12}, {"errors": 11}]
    guard = {"counted": "errors", "gain": 0, "strength": None, "before": {"errors": 10}, "tried": tried}
    document = {"kept": False, "name": "x", "digit": 3, "guard": guard}
    text = " ".join(printed(terminal.finetuning(document)).split())
    assert "on val there are 10 errors in all without x, and 11 or more with it" in text
    assert "One more" not in text
    text = " ".join(printed(terminal.finetuning({**document, "guard": {**guard, "gain": 1}})).split())
    assert "One more adapter has to lower them" in text


def test_how_much_of_the_update_was_kept(tuned):
    guard = {"rule": "errors", "strength": 0.7}
    assert "Kept at 0.7 of the trained update" in printed(terminal.finetuning({**tuned, "guard": guard}))
    assert "Kept as trained, " in printed(terminal.finetuning({**tuned, "guard": {**guard, "strength": 1.0}}))


def test_the_path_of_several_rounds(tuned):
    refused = {"kept": False, "digit": 4}
    text = printed(terminal.path([tuned, refused]))
    assert tuned["name"] in text
    assert "not kept" in text
    assert printed(terminal.path([tuned])).strip() == ""


def test_a_rank_that_a_layer_cannot_use_is_told(tuned):
    assert "smaller side" not in printed(terminal.parameters(tuned["parameters"]))
    rows = [{**row, "lora_A": [11, row["lora_A"][1]]} for row in tuned["parameters"]["layers"]]
    text = printed(terminal.parameters({**tuned["parameters"], "layers": rows}))
    assert "above the smaller side of linear3:" in text


def test_adapters_take_a_line_each_even_with_large_counts():
    counts = {"missed": 1135, "claimed": 9999, "errors": 9999}
    row = {"digit": 9, "rank": 16, "parameters": 2_807_010, "before": counts, "after": counts, "bytes": 11_228_040}
    rows = [{**row, "name": f"digit9-full-r{i}", "on_top_of": [], "proof": True} for i in range(3)]
    text = printed(terminal.adapters({"run": "r", "dataset": "mnist", "adapters": rows}))
    assert sum("digit9-full-r" in line for line in text.splitlines()) == 3
    assert sum(bool(line.strip()) for line in text.splitlines()) == 6
    assert all(len(line) <= 80 for line in text.splitlines())
