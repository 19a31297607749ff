import pytest

from lora_mnist.errors import RunError, UsageError
from lora_mnist.pipeline import Applied, evaluate, finetune
from lora_mnist.runs.run import Run

from ..conftest import workspace


def test_evaluate_agrees_with_what_was_stored(finished_run):
    run, work = Run(finished_run), workspace(finished_run)
    assert evaluate(work) == run.base.evaluation
    (adapter,) = run.adapters()
    assert evaluate(work, [Applied(adapter.name)]) == adapter.evaluation
    off = evaluate(work, [Applied(adapter.name, 0.0)])
    assert off.splits == run.base.evaluation.splits


def test_several_adapters_at_once_add_up(run_copy):
    first = Run(run_copy).adapter_names()[0]
    finetune(workspace(run_copy, digit=1, name="second"))
    both = evaluate(workspace(run_copy), [Applied(first), Applied("second")])
    assert [adapter.name for adapter in both.adapters] == [first, "second"]
    assert both.splits not in [saved.evaluation.splits for saved in Run(run_copy).adapters()]


def test_a_checkpoint_takes_no_adapters(finished_run):
    with pytest.raises(UsageError, match="no adapters"):
        evaluate(workspace(finished_run), [Applied("a")], checkpoint="b")


def test_an_adapter_that_does_not_exist_is_named(finished_run):
    with pytest.raises(RunError, match="nine"):
        evaluate(workspace(finished_run), [Applied("nine")])


def test_an_adapter_used_without_the_one_below_is_mentioned(run_copy, adapter, caplog):
    caplog.set_level("INFO", "lora_mnist")
    upper = finetune(workspace(run_copy, digit=1), on_top_of=[adapter.name]).record.name
    evaluate(workspace(run_copy), [Applied(upper)])
    assert f"trained on top of {adapter.name}, which is not on" in caplog.text
