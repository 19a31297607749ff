"""Counts before and after a repair → one sentence."""

from collections.abc import Mapping
from typing import Any


def verdict(comparison: Mapping[str, Any], digit: int) -> str:
    """One sentence on one split of `compare`: what happened to the target digit, and at whose expense."""
    before, after = comparison["before"], comparison["after"]
    missed, errors = after["missed"] - before["missed"], after["errors"] - before["errors"]
    facts = f"{_more(missed, f'missed {digit}')}, {_more(errors, 'error')} in all"
    harm = {d: comparison["broken"][d] - comparison["fixed"][d] for d in range(10) if d != digit}
    victim = max(harm, key=lambda d: harm[d])
    if missed < 0 and errors <= 0:
        return f"Repaired: {facts}."
    if missed < 0:
        return f"Fixed one digit and forgot others: {facts}; {victim} suffers most ({harm[victim]:,} more wrong)."
    return f"Not repaired: {facts}."


def _more(change: int, noun: str) -> str:
    if not change:
        return f"no more and no fewer {noun}s"
    return f"{abs(change):,} {'more' if change > 0 else 'fewer'} {noun}{'' if abs(change) == 1 else 's'}"
