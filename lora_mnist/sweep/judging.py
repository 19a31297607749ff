"""What one trained network does: at which strength it is kept, and its counts. As `finetune` decides, but faster.

Every adapter of a base, at every strength, starts from the same products of the first layer, a quarter of all products.
They are made once for each base.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lora_mnist import SCHEMA
from lora_mnist.datasets.dataset import Dataset
from lora_mnist.evaluation.baselines import shifted_logit, shifted_to_miss
from lora_mnist.evaluation.guard import Guard, decide, require_val
from lora_mnist.evaluation.metrics import compare, held_out_logits, logits_of, require_finite, summarise
from lora_mnist.evaluation.results import Analysis, Counts, ShiftedLogit, Threshold
from lora_mnist.evaluation.verdict import Kind, verdict_of
from lora_mnist.lora import scale_alpha
from lora_mnist.lora.model import set_strength
from lora_mnist.settings.config import GuardRule
from lora_mnist.sweep.rows import Round, SplitCounts
from lora_mnist.sweep.world import Base
from lora_mnist.training.model import MLP

TOO_HIGH = "Choose a lower --learning-rate."


@dataclass(frozen=True)
class Judgement:
    """What a network does, by split; `strength` and `verdict` are None if nothing was kept. See `Row` for the rest."""

    strength: float | None
    after: Mapping[str, SplitCounts]
    threshold: Mapping[str, Counts]
    threshold_on_test: Counts
    shifted: tuple[Counts, ...]
    verdict: Kind | None
    rounds: tuple[Round, ...] = ()


class Judge:
    """Judges whatever was trained on one base.

    Args:
        base: without adapters.
        dataset: its held-out images.
    """

    def __init__(self, base: Base, dataset: Dataset):
        self.base, self.dataset = base, dataset
        self.labels = {split: part.labels.cpu() for split, part in dataset.held_out.items()}

    def before(self, digit: int) -> dict[str, SplitCounts]:
        """What the base does."""
        return counted(self.base.logits, self.labels, digit)

    def adapter(self, network: MLP, name: str, digit: int, rule: GuardRule) -> Judgement:
        """Judge adapter `name` of `network`; it is left scaled as its guard decided.

        Raises:
            UsageError: a logit is not finite, or there is a rule but no `val`.
        """
        strength: float | None = 1.0
        known: dict[float, torch.Tensor] = {}
        if rule != "none":
            require_val(rule, self.dataset.val)

            def val_at(strength: float) -> torch.Tensor:
                known[strength] = self.logits_at(network, name, strength, "val")
                return known[strength]

            before, truth = self.base.logits["val"], self.labels["val"]
            strength = decide(Guard(rule), before, truth, digit, val_at).scale
            if strength is None:
                return self.judged(self.base.logits, digit, None)
            scale_alpha(network, name, strength)
        done = {"val": known[1.0]} if known and strength == 1.0 else {}
        rest = {split: self.logits_at(network, name, 1.0, split) for split in self.labels if split not in done}
        return self.judged(done | rest, digit, strength)

    def whole(self, network: MLP, digit: int) -> Judgement:
        """Judge a network of which all weights were trained. Raises UsageError if a logit is not finite."""
        logits = held_out_logits(network, self.dataset)
        require_finite(logits, TOO_HIGH)
        return self.judged(logits, digit, 1.0)

    def logits_at(self, network: MLP, name: str, strength: float, split: str) -> torch.Tensor:
        """(N, 10) fp32 on the CPU with adapter `name` at `strength`.

        Raises:
            UsageError: one is not finite.
        """
        set_strength(network, name, strength)
        logits = logits_of(network, self.dataset.held_out[split].images)
        require_finite({"": logits}, TOO_HIGH)
        return logits

    def judged(self, logits: Mapping[str, torch.Tensor], digit: int, strength: float | None) -> Judgement:
        """Judge a network by its logits (N, 10) by split, kept at that strength."""
        base = self.base.logits
        shifted = shifted_logit(base, logits, self.labels, digit)
        before, after, truth = ({"test": one["test"]} for one in (base, logits, self.labels))
        on_test = shifted_logit(before, after, truth, digit)
        return Judgement(
            strength=strength,
            after=counted(logits, self.labels, digit),
            threshold=shifted.splits,
            threshold_on_test=on_test.splits["test"],
            shifted=shifted_to_miss(logits, self.labels, digit),
            verdict=None if strength is None else self._verdict(logits, digit, shifted),
        )

    def _verdict(self, logits: Mapping[str, torch.Tensor], digit: int, shifted: ShiftedLogit) -> Kind:
        analysis = Analysis(
            schema_version=SCHEMA,
            splits=compare(self.base.logits, logits, self.labels, digit),
            threshold=Threshold(**dict(shifted), curve=()),
            examples=(),
        )
        return verdict_of(analysis, digit).kind


def counted(
    logits: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor], digit: int
) -> dict[str, SplitCounts]:
    """The counts of logits (N, 10) on labels (N,), by split."""
    found = {}
    for split, truth in labels.items():
        result = summarise(logits[split], truth)
        false_alarms = sum(row[digit] for row in result.confusion) - result.confusion[digit][digit]
        found[split] = SplitCounts(
            missed=result.wrong[digit],
            false_alarms=false_alarms,
            errors=result.errors,
            wrong=result.wrong,
            images=tuple(result.images),
        )
    return found
