"""Several repairs on top of each other, as `run --rounds` makes them: each of the digit that is weakest then."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from lora_mnist.evaluation.guard import Guard, require_val, select_scale
from lora_mnist.evaluation.metrics import counts_of, held_out_logits, require_finite, weakest_digit
from lora_mnist.lora import parameter_table, scale_alpha
from lora_mnist.sweep.grid import Job
from lora_mnist.sweep.judging import TOO_HIGH, Judge, Judgement
from lora_mnist.sweep.rows import Round
from lora_mnist.training.model import MLP
from lora_mnist.training.train import train_adapter


def repaired_in_rounds(job: Job, judge: Judge) -> tuple[Judgement, int]:
    """The network after the last round that was kept, judged as one repair of the first digit; numbers trained in it.

    Raises:
        UsageError: there is no `val`, or a logit is not finite.
    """
    dataset, rule = judge.dataset, job.settings.finetune.guard
    require_val("errors", dataset.val)  # the weakest digit is found there, whatever the guard
    network: MLP = judge.base.network
    logits: Mapping[str, torch.Tensor] = judge.base.logits
    rounds: list[Round] = []
    strength, trained = None, 0
    for number in range(job.rounds):
        digit, name = weakest_digit(logits["val"], judge.labels["val"]), f"round{number + 1}"
        adapted, _ = train_adapter(network, name, digit, job.settings, dataset)
        guard = Guard(rule, gain=1 if number else 0)
        kept = select_scale(adapted, name, guard, logits["val"], dataset.val, digit).scale
        scale_alpha(adapted, name, kept or 1.0)
        before = logits
        if kept is not None:
            network, logits = adapted, held_out_logits(adapted, dataset)
            require_finite(logits, TOO_HIGH)
            strength, trained = kept, trained + parameter_table(adapted, name).added
        counts = [counts_of(one["test"], judge.labels["test"], digit) for one in (before, logits)]
        rounds.append(Round(digit=digit, strength=kept, before=counts[0], after=counts[1]))
        if kept is None:
            break
    found = judge.judged(logits, job.digit, strength)
    return replace(found, rounds=tuple(rounds)), trained
