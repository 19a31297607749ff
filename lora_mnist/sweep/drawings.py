"""An answer → its plots."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_mnist.report.plots import GREY, INK, MARKERS, ORANGE, SERIES, WIDTH, Mark, Plot, framed, legend_above
from lora_mnist.sweep.answer import Answer, Estimate, Variant, spelled
from lora_mnist.sweep.words import METRIC_NAMES, capital, estimate, images

TABLE = "variants.csv"


def plots_of(answer: Answer) -> Iterator[Plot]:
    """All of them."""
    yield by_setting(answer)
    yield trade(answer)
    yield by_digit(answer)


def by_setting(answer: Answer) -> Plot:
    """The count that was asked for, by the setting it is ordered by, with intervals; all weights are a line."""
    metric, series = answer.metric, series_of(answer.variants)
    ordered = [one.by for variants in series.values() for one in variants if one.by is not None]
    places = {by: place for place, by in enumerate(dict.fromkeys(ordered))}
    whole = [one for one in answer.variants if one.by is None]
    figure, axes = framed(2 * len(series) + len(whole) + 1)
    marks: list[Mark] = []
    axes.axhline(answer.base[metric].mean, color=GREY, linestyle=":", linewidth=1.5, label="base")
    for (name, variants), colour, marker in zip(series.items(), itertools.cycle(SERIES), itertools.cycle(MARKERS)):
        x = [places[one.by] for one in variants if one.by is not None]
        values = [one.after[metric] for one in variants]
        _with_intervals(axes, x, values, colour, marker, name or "adapter")
        theirs = [one.threshold[metric].mean for one in variants]
        label = f"threshold{f' ({name})' if name else ''}"
        axes.plot(x, theirs, "--", color=ORANGE, marker=".", linewidth=1.2, label=label)
        pairs = zip(x, variants, strict=True)
        marks += [Mark(at, one.after[metric].mean, f"{one.name}: {estimate(one.after[metric])}") for at, one in pairs]
    for one in whole:
        axes.axhline(one.after[metric].mean, color=INK, linewidth=1.2, label=one.name)
    axes.set_xticks(list(places.values()), list(places))
    axes.set(xlabel=spelled(answer.by), ylabel=f"{METRIC_NAMES[metric]} ({images(answer)})")
    legend_above(axes)
    told = "; ".join(f"{one.name}: {estimate(one.after[metric])}" for one in answer.variants)
    alt = f"{METRIC_NAMES[metric]} by {answer.by}, base {estimate(answer.base[metric])}; {told}."
    return Plot("by-setting", figure, alt, TABLE, tuple(marks))


def trade(answer: Answer) -> Plot:
    """Missed images against all errors: a threshold buys the one with the other."""
    figure, axes = framed(len(answer.variants) + 2)
    before = answer.base["missed"].mean, answer.base["errors"].mean
    axes.plot(*before, "o", color=GREY, markersize=8, linestyle="none", label="base")
    limits = sorted(
        ((one.threshold["missed"].mean, one.threshold["errors"].mean) for one in answer.variants), reverse=True
    )
    x, y = zip(before, *limits, strict=True)
    axes.plot(x, y, "--", color=ORANGE, marker=".", linewidth=1.5, label="threshold at as many missed")
    marks = []
    for one, colour, marker in zip(answer.variants, itertools.cycle(SERIES), itertools.cycle(MARKERS)):
        missed, errors = one.after["missed"].mean, one.after["errors"].mean
        axes.plot(
            missed,
            errors,
            marker,
            color=INK if one.by is None else colour,
            markersize=8,
            linestyle="none",
            label=one.name,
        )
        marks.append(Mark(missed, errors, f"{one.name}: {missed:.1f} missed, {errors:.1f} errors"))
    axes.set(xlabel=f"missed images of the repaired digit ({images(answer)})", ylabel=f"all errors ({images(answer)})")
    legend_above(axes)
    told = "; ".join(mark.words for mark in marks)
    return Plot("trade", figure, f"Missed images against all errors. {told}.", TABLE, tuple(marks))


def by_digit(answer: Answer) -> Plot:
    """The map: a row a digit, a column a variant, and the change from the base as a colour."""
    names = [one.name for one in answer.variants]
    values, changes = (np.full((len(answer.digits), len(names)), np.nan) for _ in range(2))
    for cell in answer.cells:
        place = answer.digits.index(cell.digit), names.index(cell.variant)
        values[place], changes[place] = cell.value, cell.change
    reach = max(1.0, float(np.nanmax(np.abs(changes))))
    figure = Figure(figsize=(WIDTH, 1.4 + 0.32 * len(answer.digits)), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(changes, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
    for row, column in np.argwhere(~np.isnan(values)):
        colour = "white" if abs(changes[row, column]) > 0.45 * reach else INK
        axes.text(column, row, f"{values[row, column]:.1f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks(range(len(answer.digits)), [str(digit) for digit in answer.digits])
    axes.set(ylabel="repaired digit", title=f"{capital(METRIC_NAMES[answer.metric])} ({images(answer)})")
    axes.tick_params(length=0)
    figure.colorbar(picture, label="change from the base")
    told = "; ".join(f"{cell.digit}, {cell.variant}: {cell.value:.1f}" for cell in answer.cells)
    return Plot("by-digit", figure, f"{METRIC_NAMES[answer.metric]} by repaired digit and variant. {told}.", TABLE)


def series_of(variants: Sequence[Variant]) -> dict[str, list[Variant]]:
    """The adapters, by what was varied beside the setting they are ordered by."""
    series: dict[str, list[Variant]] = {}
    for one in variants:
        if one.by is not None:
            series.setdefault(one.series, []).append(one)
    return series


def _with_intervals(
    axes: Axes, x: Sequence[float], values: Sequence[Estimate], colour: str, marker: str, label: str
) -> None:
    mean, half = [one.mean for one in values], [one.half or 0.0 for one in values]
    axes.errorbar(x, mean, half, color=colour, marker=marker, linewidth=1.6, capsize=3, label=label)
