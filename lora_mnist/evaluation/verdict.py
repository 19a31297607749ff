"""Counts before and after a repair → one sentence."""

from lora_mnist.evaluation.findings import Comparison, Counts, PairedTwin


def verdict(comparison: Comparison, digit: int, shifted: Counts) -> str:
    """What happened to the target digit, at whose expense, and whether one shifted logit would have done as well.

    Args:
        comparison: of one split.
        shifted: what the shifted threshold does on that split.
    """
    before, after = comparison.before, comparison.after
    missed, errors = after.missed - before.missed, after.errors - before.errors
    claimed = _more(after.claimed - before.claimed, "claimed", "")
    facts = f"{_more(missed, f'missed {digit}')}, {claimed}, {_more(errors, 'error')} in all"
    if missed >= 0:
        return f"Not repaired: {facts}."
    if errors > 0:
        harm = {d: comparison.broken[d] - comparison.fixed[d] for d in range(10) if d != digit}
        victim = max(harm, key=lambda d: harm[d])
        worst = f"; {victim} suffers most ({harm[victim]:,} more wrong)" if harm[victim] > 0 else ""
        return f"Fixed one digit and forgot others: {facts}{worst}. {_against(after, shifted)}"
    if is_repair(comparison, shifted):
        return f"A repair: {facts}. {_against(after, shifted)}"
    return f"No better than a shifted threshold: {facts}. {_against(after, shifted)}"


def is_repair(comparison: Comparison, shifted: Counts) -> bool:
    """Whether the digit is missed less, nothing is worse in all, and one shifted logit would have done worse."""
    before, after = comparison.before, comparison.after
    better = after.missed < before.missed and after.errors <= before.errors
    return better and after.errors < shifted.errors


def _against(after: Counts, shifted: Counts) -> str:
    same = "as many" if shifted.missed == after.missed else f"{shifted.missed:,}"
    if after.errors == shifted.errors:
        change = "just as many errors as"
    elif not shifted.errors:
        change = f"{after.errors:,} more errors than"
    else:
        share = abs(after.errors / shifted.errors - 1)
        change = f"{100 * share:.0f} % {'fewer' if after.errors < shifted.errors else 'more'} errors than"
    return f"It makes {change} a shifted threshold, which misses {same}."


def _more(change: int, noun: str, plural: str = "s") -> str:
    if not change:
        return f"as many {noun}{plural}"
    return f"{abs(change):,} {'more' if change > 0 else 'fewer'} {noun}{'' if abs(change) == 1 else plural}"


def paired(pair: PairedTwin, images: str) -> str:
    """One sentence on an adapter and its twin: who alone is right about how many of the same images."""
    return (
        f"Of {images}, {pair.only_adapter_right} are right with the adapter only, {pair.only_twin_right}"
        f" with the twin only (McNemar, exact: p = {pair.p:.2g})."
    )
