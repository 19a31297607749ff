"""Images → logits → confusion matrix, errors per digit, and what changed between two networks on the same images."""

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from lora_mnist.datasets.dataset import Dataset
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.results import Comparison, Counts, Matrix, Pair, Pairs, Scores, ScoreTable, SplitResult
from lora_mnist.training.model import MLP, logits_of

SAMPLED, OUTCOMES = 200, {"fixed": 60, "broken": 40, "wrong": 40}  # of a sample at most; the others are right


def held_out_logits(model: MLP, dataset: Dataset) -> dict[str, torch.Tensor]:
    """Logits (N, 10) fp32 on the CPU of `val`, where there is one, and `test`."""
    return {split: logits_of(model, part.images) for split, part in dataset.held_out.items()}


def require_finite(logits: Mapping[str, torch.Tensor], way_out: str) -> None:
    """Raises UsageError if a logit is not finite, which can be although all weights are."""
    if not all(bool(part.isfinite().all()) for part in logits.values()):
        raise UsageError("The network's logits are no longer finite numbers.", way_out)


def confusion_matrix(logits: torch.Tensor, labels: torch.Tensor) -> Matrix:
    """Counts (10, 10) of logits (N, 10) on labels (N,): row true digit, column predicted digit."""
    counts = torch.bincount(labels.cpu() * 10 + logits.argmax(1), minlength=100)
    return tuple(map(tuple, counts.view(10, 10).tolist()))


def summarise(logits: torch.Tensor, labels: torch.Tensor) -> SplitResult:
    """Confusion matrix and errors of logits (N, 10) on labels (N,)."""
    confusion = confusion_matrix(logits, labels)
    return SplitResult(
        count=len(labels),
        accuracy=sum(row[digit] for digit, row in enumerate(confusion)) / len(labels),
        wrong=tuple(sum(row) - row[digit] for digit, row in enumerate(confusion)),
        confusion=confusion,
        scores=scores_in(confusion),
    )


def scores_in(confusion: Matrix) -> ScoreTable:
    """Precision, recall and F1 of every digit, of a confusion matrix (10, 10), rows true digit; and their means."""
    digits = []
    for digit, row in enumerate(confusion):
        hits, shown, taken = row[digit], sum(row), sum(other[digit] for other in confusion)
        precision, recall = hits / taken if taken else 0.0, hits / shown if shown else 0.0
        f1 = 2 * hits / (shown + taken) if shown + taken else 0.0
        digits.append(Scores(precision=precision, recall=recall, f1=f1))
    precision, recall, f1 = (sum(column) / 10 for column in zip(*(vars(one).values() for one in digits), strict=True))
    return ScoreTable(digits=tuple(digits), macro=Scores(precision=precision, recall=recall, f1=f1))


def weakest_digit(logits: torch.Tensor, labels: torch.Tensor) -> int:
    """The digit with the highest error rate; ties go to the higher mean loss. Digits without images do not count."""
    labels = labels.cpu()
    losses = F.cross_entropy(logits, labels, reduction="none")
    wrong = (logits.argmax(1) != labels).float()
    digits: list[int] = labels.unique().tolist()
    return max(digits, key=lambda digit: (float(wrong[labels == digit].mean()), float(losses[labels == digit].mean())))


def counts_in(confusion: Matrix, digit: int) -> Counts:
    """What a confusion matrix (10, 10), rows true digit, says of `digit`."""
    hits = confusion[digit][digit]
    return Counts(
        missed=sum(confusion[digit]) - hits,
        false_alarms=sum(row[digit] for row in confusion) - hits,
        errors=sum(map(sum, confusion)) - sum(confusion[d][d] for d in range(10)),
    )


def counts_of(logits: torch.Tensor, labels: torch.Tensor, digit: int) -> Counts:
    """`counts_in` of logits (N, 10) on labels (N,)."""
    return counts_in(confusion_matrix(logits, labels), digit)


def compare(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
    digit: int,
) -> dict[str, Comparison]:
    """`compare_split`, by split."""
    return {split: compare_split(before[split], after[split], truth, digit) for split, truth in labels.items()}


def compare_split(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor, digit: int) -> Comparison:
    """What changed for the target `digit`, and for all, between logits (N, 10) on the same labels (N,)."""
    truth, was, now = labels.cpu(), before.argmax(1), after.argmax(1)
    is_digit, moved = truth == digit, was != now
    fixed, broken = moved & (now == truth), moved & (was == truth)
    return Comparison(
        before=counts_of(before, truth, digit),
        after=counts_of(after, truth, digit),
        fixed=tuple(truth[fixed].bincount(minlength=10).tolist()),
        broken=tuple(truth[broken].bincount(minlength=10).tolist()),
        pairs=Pairs(
            missed=_pair(fixed & is_digit, broken & is_digit),
            false_alarms=_pair(moved & ~is_digit & (was == digit), moved & ~is_digit & (now == digit)),
            errors=_pair(fixed, broken),
        ),
        scores_before=scores_in(confusion_matrix(before, truth)),
        came=confusion_matrix(after[moved], truth[moved]),
        went=confusion_matrix(before[moved], truth[moved]),
    )


def _pair(fixed: torch.Tensor, broken: torch.Tensor) -> Pair:
    return Pair(fixed=int(fixed.sum()), broken=int(broken.sum()))


def sample_by_outcome(labels: torch.Tensor, base: torch.Tensor, *adapted: torch.Tensor) -> torch.Tensor:
    """int64 (K,) up to `SAMPLED` images, in their order: some that an adapter fixes or breaks, or none gets right.

    Args:
        labels: int64 (N,).
        base, adapted: int64 (N,), what the base takes them for, and with each adapter.
    """
    right, others = base == labels, [decided == labels for decided in adapted or (base,)]
    some, every = torch.stack(others).any(0), torch.stack(others).all(0)
    outcomes = {"fixed": ~right & some, "broken": right & ~every, "wrong": ~right & ~some, "right": right & every}
    chosen: list[int] = []
    for outcome, mask in outcomes.items():
        found = mask.nonzero().flatten()
        count = min(OUTCOMES.get(outcome, SAMPLED - len(chosen)), len(found))
        chosen += [int(found[i * len(found) // count]) for i in range(count)]  # evenly spread
    return torch.tensor(sorted(chosen))
