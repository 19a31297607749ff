"""An answer → Markdown, as README and docs/ have it."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lora_mnist.sweep.answer import Answer, Variant
from lora_mnist.sweep.estimates import METRICS, Estimate, Metric
from lora_mnist.sweep.references import Rounds
from lora_mnist.sweep.rows import Row
from lora_mnist.sweep.words import METRIC_NAMES, capital, estimate, points, scope, sentences

HEADINGS = ("missed", "false alarms", "all errors", "worst other digit", "kept")


def markdown(answer: Answer, rows: Sequence[Row]) -> str:
    """All tables and sentences; a line a seed as well if there is one variant."""
    lowest, highest = (f"{100 * share:.2f}" for share in answer.accuracy)
    bases = f"bases of {lowest} %" if lowest == highest else f"bases of {lowest} to {highest} %"
    parts = [f"{capital(scope(answer))}, with 95 % intervals over seeds; {bases}.", _variants(answer)]
    parts += [_sentence(one.name, of) for one in answer.variants for of in _compared(one)]
    parts += [f"Verdicts of {one.name}: {_verdicts(one)}." for one in answer.variants]
    parts += sentences(answer)
    parts.append(_by_digit(answer))
    if answer.rounds is not None:
        parts += [_rounds(answer.rounds), _end(answer.rounds)]
    adapters = [row for row in rows if row.method == "lora"]
    if sum(one.by is not None for one in answer.variants) == 1:
        parts.append(_by_case(adapters, answer.split))
    return "\n\n".join(parts) + "\n"


def _variants(answer: Answer) -> str:
    lines = [_row("base", [*map(estimate, answer.base.values()), "", ""])]
    for one in answer.variants:
        kept = f"{one.kept} of {one.jobs}"
        lines.append(_row(one.name, [*_changes(one.after, answer), points(one.worst), kept]))
        for of in one.references:
            if of.name not in [other.name for other in answer.variants]:
                lines.append(_row(of.name, [*_changes(of.counts, answer), "", ""]))
    return _table(HEADINGS, lines)


def _changes(counts: Mapping[Metric, Estimate], answer: Answer) -> Iterator[str]:
    for metric in METRICS:
        yield f"{estimate(counts[metric])} ({_percent(counts[metric].mean, answer.base[metric].mean)})"


def _compared(one: Variant) -> Iterable[tuple[str, float, Estimate]]:
    for of in one.references:
        yield of.name, of.counts["errors"].mean / max(one.after["errors"].mean, 1e-9), of.more


def _sentence(name: str, compared: tuple[str, float, Estimate]) -> str:
    other, ratio, more = compared
    size = more.model_copy(update={"mean": abs(more.mean)})
    what = "fewer" if more.mean < 0 else "more"
    return f"{capital(other)}: {estimate(size)} {what} errors than {name} ({_percent(ratio, 1)})."


def _verdicts(one: Variant) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in one.verdicts.items())


def _by_digit(answer: Answer) -> str:
    """The map: what `answer.metric` is after the repair of each digit."""
    values = {(cell.digit, cell.variant): f"{cell.value:.1f}" for cell in answer.cells}
    names = [one.name for one in answer.variants]
    lines = [_row(str(digit), [values.get((digit, name), "") for name in names]) for digit in answer.digits]
    return _table(names, lines, f"{METRIC_NAMES[answer.metric]}, digit")


def _rounds(rounds: Rounds) -> str:
    lines = []
    for number, one in enumerate(rounds.rounds, 1):
        counts = [f"{before:.1f} → {after:.1f}" for before, after in (one.missed, one.errors)]
        change = estimate(one.change).replace("-", "−")
        cells = [f"{one.kept} of {one.jobs}", *counts, change, f"{one.fell} of {one.kept}"]
        lines.append(_row(str(number), cells))
    return _table(("kept", "missed", "all errors", "change", "errors fell in"), lines, "round")


def _end(rounds: Rounds) -> str:
    worst = f"{points(rounds.worst)} points, at most {rounds.most:+.2f}".replace("-", "−")
    return f"At the end {estimate(rounds.errors)} errors; the digit that fares worst against the base: {worst}."


def _by_case(rows: Sequence[Row], split: str) -> str:
    lines = [_case(str(row.seed), [row], split, str(row.digit), row.verdict or "not kept") for row in rows]
    lines.append(_case("mean", rows, split))
    return _table(("digit", "accuracy", "missed", "false alarms", "all errors", "verdict"), lines, "seed")


def _case(name: str, rows: Sequence[Row], split: str, digit: str = "", verdict: str = "") -> str:
    """Means before and after."""
    pairs = [(row.before[split], row.after[split]) for row in rows]
    means = {of: [statistics.mean(one.of(of) for one in when) for when in zip(*pairs, strict=True)] for of in METRICS}
    images = sum(rows[0].before[split].images)
    accuracy = " → ".join(f"{100 * (1 - wrong / images):.2f}" for wrong in means["errors"])
    form = ".0f" if len(rows) == 1 else ".1f"
    counts = [f"{before:{form}} → {after:{form}}" for before, after in means.values()]
    return _row(name, [digit, f"{accuracy} %", *counts, verdict])


def _table(headings: Sequence[str], lines: Iterable[str], first: str = "") -> str:
    return "\n".join([_row(first, headings), "|---" * (len(headings) + 1) + "|", *lines])


def _row(name: str, cells: Iterable[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


def _percent(value: float, of: float) -> str:
    return f"{100 * (value / of - 1):+.0f} %".replace("-", "−") if of else "–"
