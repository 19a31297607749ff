"""What the documents of an adapter say of it at other strengths than its own, derived again: the guard and the strength_curve.

First only the images are asked about that the strengths around leave open (`evaluation.between`). A count that comes
out as it is stored is settled; if one does not, all images are asked, and what they say counts.
"""

from collections.abc import Callable, Mapping

import torch

from lora_mnist.evaluation.analysis import Learnt, inspect
from lora_mnist.evaluation.between import Between, same_points
from lora_mnist.evaluation.results import Analysis, GuardDecision, StrengthCurve
from lora_mnist.evaluation.strength import Guard, decide, preferred
from lora_mnist.evaluation.strength_curve import Ask, asking
from lora_mnist.pipeline.finetune import guard_of
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.runs.schemas import FinetuneRecord
from lora_mnist.settings.config import AdapterSettings
from lora_mnist.training.model import MLP


class Strengths:
    """An adapter and its logits (N, 10) by split `before` and `after`: at strengths 0 and 1.

    Args:
        adapted: the base with adapter `name` at strength 1, where it is left again.
        record: as it is stored.
    """

    def __init__(
        self,
        work: Workspace,
        adapted: MLP,
        record: FinetuneRecord,
        name: str,
        before: Mapping[str, torch.Tensor],
        after: Mapping[str, torch.Tensor],
    ):
        self.work, self.adapted, self.record, self.name = work, adapted, record, name
        self.before, self.after = before, after
        known = {split: {0.0: before[split], 1.0: after[split]} for split in work.dataset.held_out}
        self._few: Ask = Between(adapted, name, work.dataset.held_out, known)
        self._all = asking(adapted, name, work.dataset.held_out)

    def guard(self) -> GuardDecision | None:
        """What was decided, and why; None of an adapter that was not trained."""
        settings, stored = self.record.settings, self.record.guard
        if not isinstance(settings, AdapterSettings):
            return None
        guard = guard_of(settings, self.record.on_top_of)
        if "val" not in self.before:
            guard = Guard("none")  # there is nothing to judge by
        kept = stored.strength if stored and stored.strength else 1.0
        found = self._decide(guard, lambda strength: self._few("val", strength / kept))
        if stored is None or found == stored:
            return found

        def ask(strength: float) -> torch.Tensor:
            return self._all("val", strength / kept)

        found = self._decide(guard, ask)
        start = found.before.of(found.counted) if found.before and found.counted else 0
        allowed = [one for one in stored.tried if guard.allows(one, start)]
        best = preferred(allowed).strength if allowed else None
        stands = stored.strength == best and same_points(stored.tried, found.tried, ask)
        return found.model_copy(update={"tried": stored.tried, "strength": best}) if stands else found

    def _decide(self, guard: Guard, ask: Callable[[float], torch.Tensor]) -> GuardDecision:
        return decide(guard, self.before.get("val"), self.work.labels.get("val", _NONE), self.record.digit, ask)

    def learnt(self, analysis: Analysis, stored: StrengthCurve | None, guard: GuardDecision | None) -> Learnt:
        """What it does at other strengths and layer by layer.

        Args:
            analysis: what it did at strength 1.
            stored: the strength_curve as it is stored; if what was found differs by no more than rounding, that is it.
        """
        found = self._inspect(analysis, guard, self._few)
        if stored is None or found.strength_curve == stored:
            return found
        found = self._inspect(analysis, guard, self._all)
        strength_curve = found.strength_curve
        stands = (
            strength_curve.measured_on == stored.measured_on
            and list(strength_curve.splits) == list(stored.splits)
            and stored.recommended == preferred(stored.splits[stored.measured_on]).strength
            and all(self._same(split, stored, strength_curve) for split in strength_curve.splits)
        )
        return Learnt(stored, found.layers, found.directions) if stands else found

    def _same(self, split: str, stored: StrengthCurve, found: StrengthCurve) -> bool:
        return same_points(stored.splits[split], found.splits[split], lambda strength: self._all(split, strength))

    def _inspect(self, analysis: Analysis, guard: GuardDecision | None, ask: Ask) -> Learnt:
        as_trained = guard is not None and guard.strength == 1  # then what was tried were its strengths
        tried = [one.point for one in guard.tried] if guard and as_trained else []
        return inspect(self.adapted, self.name, self.record.digit, self.work.dataset, analysis.splits, tried, ask)


_NONE = torch.empty(0, dtype=torch.int64)
