"""Counts before and after a repair → one sentence."""

from collections.abc import Mapping
from typing import Any


def verdict(comparison: Mapping[str, Any], digit: int, shifted: Mapping[str, int]) -> str:
    """What happened to the target digit, at whose expense, and whether one shifted logit would have done as well.

    Args:
        comparison: one split of `compare`.
        shifted: missed, claimed and errors of the shifted threshold on that split.
    """
    before, after = comparison["before"], comparison["after"]
    missed, claimed, errors = (after[key] - before[key] for key in ("missed", "claimed", "errors"))
    facts = f"{_more(missed, f'missed {digit}')}, {_more(claimed, 'claimed', '')}, {_more(errors, 'error')} in all"
    if missed >= 0:
        return f"Not repaired: {facts}."
    if errors > 0:
        harm = {d: comparison["broken"][d] - comparison["fixed"][d] for d in range(10) if d != digit}
        victim = max(harm, key=lambda d: harm[d])
        worst = f"; {victim} suffers most ({harm[victim]:,} more wrong)" if harm[victim] > 0 else ""
        return f"Fixed one digit and forgot others: {facts}{worst}. {_against(after, shifted)}"
    if is_repair(comparison, shifted):
        return f"A repair: {facts}. {_against(after, shifted)}"
    return f"No better than a shifted threshold: {facts}. {_against(after, shifted)}"


def is_repair(comparison: Mapping[str, Any], shifted: Mapping[str, int]) -> bool:
    """Whether the digit is missed less, nothing is worse in all, and one shifted logit would have done worse."""
    before, after = comparison["before"], comparison["after"]
    better = after["missed"] < before["missed"] and after["errors"] <= before["errors"]
    return better and after["errors"] < shifted["errors"]


def _against(after: Mapping[str, int], shifted: Mapping[str, int]) -> str:
    same = "as many" if shifted["missed"] == after["missed"] else f"{shifted['missed']:,}"
    if after["errors"] == shifted["errors"]:
        change = "just as many errors as"
    elif not shifted["errors"]:
        change = f"{after['errors']:,} more errors than"
    else:
        share = abs(after["errors"] / shifted["errors"] - 1)
        change = f"{100 * share:.0f} % {'fewer' if after['errors'] < shifted['errors'] else 'more'} errors than"
    return f"It makes {change} a shifted threshold, which misses {same}."


def _more(change: int, noun: str, plural: str = "s") -> str:
    if not change:
        return f"as many {noun}{plural}"
    return f"{abs(change):,} {'more' if change > 0 else 'fewer'} {noun}{'' if abs(change) == 1 else plural}"


def paired(pair: Mapping[str, Any], images: str) -> str:
    """One sentence on an adapter and its twin: who alone is right about how many of the same images."""
    return (
        f"Of {images}, {pair['only_adapter_right']} are right with the adapter only, {pair['only_twin_right']}"
        f" with the twin only (McNemar, exact: p = {pair['p']:.2g})."
    )
