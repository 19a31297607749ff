"""What an adapter is compared with: its base, a shifted threshold, two controls, all weights, repairs in rounds."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lora_mnist.datasets.dataset import Dataset
from lora_mnist.evaluation.guard import Guard, require_val, select_scale
from lora_mnist.evaluation.metrics import counts_of, held_out_logits, require_finite, summarise, weakest_digit
from lora_mnist.lora import parameter_table, scale_alpha
from lora_mnist.settings.config import Settings
from lora_mnist.sweep.grid import CONTROLS, Job
from lora_mnist.sweep.rows import Round, SplitCounts
from lora_mnist.training.model import MLP
from lora_mnist.training.train import train_adapter, train_all_weights

TOO_HIGH = "Choose a lower --learning-rate."


@dataclass(frozen=True)
class Base:
    """A base that jobs start from."""

    fingerprint: str
    network: MLP
    logits: Mapping[str, torch.Tensor]  # (N, 10) fp32 on the CPU of `val`, where there is one, and `test`
    uncertainty: torch.Tensor | None  # float64 (N,) of the training images (see `uncertainty_of`), if a job asks


@dataclass(frozen=True)
class Trained:
    """What the training of a job came to."""

    logits: Mapping[str, torch.Tensor]  # (N, 10) fp32 on the CPU, by split, of what is kept; the base's if nothing is
    scale: float | None  # that the guard selected; None: none, and nothing is kept
    parameters: int  # how many numbers were trained
    rounds: tuple[Round, ...] = ()


def settings_of(job: Job, dataset: Dataset) -> Settings:
    """What an adapter or a control is trained with: a control sees the digit as often as it is among the images."""
    if job.method not in CONTROLS:
        return job.settings
    control: dict[str, float] = {"focus": float((dataset.train.labels == job.digit).float().mean())}
    if job.method == "control":
        control["hard_examples"] = 0.0
    return job.settings.model_copy(update={"finetune": job.settings.finetune.model_copy(update=control)})


def select_and_evaluate(
    network: MLP, name: str, guard: Guard, before: Mapping[str, torch.Tensor], dataset: Dataset, digit: int
) -> Trained:
    """Scale adapter `name` of `network` as its guard selects on `val`, just as `finetune` does, and evaluate it.

    Args:
        before: logits (N, 10) by split of the network without the adapter.

    Raises UsageError if a logit is not finite, or there is a guard but no `val`.
    """
    scale = select_scale(network, name, guard, before.get("val"), dataset.val, digit).scale
    parameters = parameter_table(network, name).added
    if scale is None:
        return Trained(before, None, parameters)
    scale_alpha(network, name, scale)
    logits = held_out_logits(network, dataset)
    require_finite(logits, TOO_HIGH)
    return Trained(logits, scale, parameters)


def train_full(job: Job, base: Base, dataset: Dataset) -> Trained:
    """Train all weights on the batches that an adapter would see, without a guard: what an adapter could reach.

    Raises UsageError if a logit is not finite.
    """
    network, _ = train_all_weights(base.network, job.digit, job.settings, dataset, uncertainty=base.uncertainty)
    logits = held_out_logits(network, dataset)
    require_finite(logits, TOO_HIGH)
    return Trained(logits, 1.0, sum(weight.numel() for weight in network.parameters()))


def train_rounds(job: Job, base: Base, dataset: Dataset) -> Trained:
    """Repair the digit that is weakest, then on top the one that is weakest then, and so on, as `run --rounds` does.

    Raises UsageError if there is no `val`, or a logit is not finite.
    """
    require_val("errors", dataset.val)  # the weakest digit is found there, whatever the guard
    network, logits, rounds = base.network, base.logits, list[Round]()
    scale, parameters = None, 0
    for number in range(job.rounds):
        digit, name = weakest_digit(logits["val"], dataset.val.labels), f"round{number + 1}"
        adapted, _ = train_adapter(network, name, digit, job.settings, dataset)
        # one more adapter has to save at least one image
        guard = Guard(job.settings.finetune.guard, gain=1 if number else 0)
        found = select_and_evaluate(adapted, name, guard, logits, dataset, digit)
        before, after = (counts_of(one["test"], dataset.test.labels, digit) for one in (logits, found.logits))
        rounds.append(Round(digit=digit, strength=found.scale, before=before, after=after))
        if found.scale is None:
            break
        network, logits, scale, parameters = adapted, found.logits, found.scale, parameters + found.parameters
    return Trained(logits, scale, parameters, tuple(rounds))


def split_counts(
    logits: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor], digit: int
) -> dict[str, SplitCounts]:
    """What a network does, by split, from its logits (N, 10) and the labels (N,)."""
    found = {}
    for split, truth in labels.items():
        result, counts = summarise(logits[split], truth), counts_of(logits[split], truth, digit)
        found[split] = SplitCounts(**dict(counts), wrong=result.wrong, images=tuple(result.images))
    return found
