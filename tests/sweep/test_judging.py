"""Against what `finetune` does with the same adapter."""

import copy

import pytest
import torch

from lora_mnist.evaluation.analysis import analyse
from lora_mnist.evaluation.guard import Guard, select_scale
from lora_mnist.evaluation.metrics import held_out_logits
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.lora import scale_alpha
from lora_mnist.sweep.judging import Judge, counted
from lora_mnist.training.train import train_adapter


@pytest.mark.parametrize("guard", ["every-digit", "errors", "digit", "none"])
@pytest.mark.parametrize("targets", [("linear1", "linear2", "linear3"), ("linear2",)])
def test_strength_counts_and_verdict_are_those_of_finetune(small, guard, targets):
    _, world, jobs = small
    job = jobs[0]
    recipe = job.settings.finetune.model_copy(update={"targets": targets})
    settings = job.settings.model_copy(update={"finetune": recipe})
    base, data = world.bases[job.base], world.dataset
    trained, _ = train_adapter(base.network, "a", job.digit, settings, data)
    theirs = copy.deepcopy(trained)
    decision = select_scale(theirs, "a", Guard(guard), base.logits["val"], data.val, job.digit)
    scale_alpha(theirs, "a", decision.scale or 1.0)
    logits = held_out_logits(theirs if decision.scale else base.network, data)
    found = Judge(base, data).adapter(trained, "a", job.digit, guard)
    assert found.strength == decision.scale
    for split, part in data.held_out.items():
        assert found.after[split].wrong == counted(logits, {split: part.labels}, job.digit)[split].wrong
    analysis = analyse(base.logits, logits, {split: part.labels for split, part in data.held_out.items()}, job.digit)
    assert found.threshold == analysis.threshold.splits
    if decision.scale:
        assert found.verdict == verdict_of(analysis, job.digit).kind


def test_logits_are_those_of_the_whole_network_bit_by_bit(small):
    _, world, jobs = small
    base, data = world.bases[jobs[0].base], world.dataset
    trained, _ = train_adapter(base.network, "a", 3, jobs[0].settings, data)
    for split, logits in held_out_logits(trained, data).items():
        assert torch.equal(Judge(base, data).logits_at(trained, "a", 1.0, split), logits)


def test_what_is_not_kept_leaves_the_base_and_has_no_verdict(small):
    _, world, jobs = small
    base = world.bases[jobs[0].base]
    settings = jobs[0].settings
    ruined = settings.finetune.model_copy(update={"focus": 1.0, "learning_rate": 5.0})
    settings = settings.model_copy(update={"finetune": ruined})
    trained, _ = train_adapter(base.network, "a", 3, settings, world.dataset)
    judge = Judge(base, world.dataset)
    found = judge.adapter(trained, "a", 3, "every-digit")
    assert (found.strength, found.verdict) == (None, None)
    assert found.after == judge.before(3)
