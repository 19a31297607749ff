"""A summary → one self-contained HTML page with its plots, and the same as Markdown, JSON and CSV beside it."""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import PackageLoader, select_autoescape
from matplotlib.figure import Figure

from lora_mnist.report.page import LEVELS, environment, template_file
from lora_mnist.report.plots import (
    GREY,
    INK,
    MARKERS,
    ORANGE,
    SERIES,
    WIDTH,
    Plot,
    PointLabel,
    default_style,
    legend_above,
    new_axes,
)
from lora_mnist.report.tables import to_csv
from lora_mnist.runs.atomic import new_folder, to_json, write_file
from lora_mnist.sweep.rows import Row
from lora_mnist.sweep.summary import METRIC_NAMES, ON_VAL, Cell, Summary, Variant, capital, spelled

TABLE = "variants.csv"
PAGE = "report"  # folder in that of the sweep


@default_style()
def write_page(summary: Summary, rows: Sequence[Row], folder: Path) -> Path:
    """Write the page of `summary`, which `rows` give, into the folder of its sweep and return it. Raises DiskError."""
    # the report's environment and filters, but templates of our own
    templates = environment().overlay(
        loader=PackageLoader("lora_mnist.sweep"), autoescape=select_autoescape(("html.j2",), default=False)
    )
    plots = {plot.name: plot for plot in (plot_by_setting(summary), plot_trade(summary), plot_by_digit(summary))}
    reach = max(abs(cell.change) for cell in summary.cells)

    def shade(cell: Cell) -> str:  # its class: purple where there are fewer than the base has, orange where more
        if not cell.change:
            return ""
        return f"{'o' if cell.change > 0 else 'p'}{max(1, round(LEVELS * abs(cell.change) / reach))}"

    adapters = [one.name for one in summary.variants if one.by is not None]
    known = {
        "answer": summary,
        "adapters": adapters,
        "capital": capital,
        "cells": {(cell.digit, cell.variant): cell for cell in summary.cells},
        "metric": METRIC_NAMES[summary.metric],
        "names": [one.name for one in summary.variants],
        "on_val": ON_VAL,
        "plots": plots,
        "relative_change": relative_change,
        "seed_lines": _seed_lines(rows, summary.split) if len(adapters) == 1 else [],
        "setting": spelled(summary.by),
        "shade": shade,
        "style": template_file("report.css"),
        "table": TABLE,
    }
    files = {
        "index.html": templates.get_template("sweep.html.j2").render(known).encode(),
        "tables.md": templates.get_template("tables.md.j2").render(known).rstrip().encode() + b"\n",
        "answer.json": to_json(summary.model_dump(mode="json")),
        TABLE: to_csv(list(_lines(summary))),
    }
    for name, plot in plots.items():
        files |= {f"{name}.svg": plot.svg, f"{name}.png": plot.png}
    with new_folder(folder / PAGE) as fresh:
        for name, content in files.items():
            write_file(fresh / name, content)
    return folder / PAGE / "index.html"


def relative_change(value: float, to: float) -> str:
    """By how many per cent it is more or less, with its sign; of a handful, or many times as much, that says little."""
    share = 100 * (value / to - 1) if to >= 5 else math.inf
    return f" ({share:+.0f} %)".replace("-", "−") if abs(share) < 1000 else ""


def _lines(summary: Summary) -> Iterator[dict[str, Any]]:
    """A variant each: its counts and those of the threshold, each with half of its interval."""
    for one in summary.variants:
        line: dict[str, Any] = {"variant": one.name, summary.by: one.by}
        line |= {"parameters": one.parameters, "jobs": one.jobs, "kept": one.kept}
        thresholds = {f"threshold_{name}": known for name, known in one.threshold.items()}
        for name, known in (*one.after.items(), *thresholds.items(), ("worst_other", one.worst)):
            line |= {name: known.mean, f"{name}_half": known.half}
        yield line


def _seed_lines(rows: Sequence[Row], split: str) -> Iterator[list[str]]:
    """Cells of a line for each adapter, and of their mean: before → after."""
    adapters = [row for row in rows if row.method == "lora"]
    lines = [(str(row.seed), str(row.digit), [row], ".0f", row.verdict or "not kept") for row in adapters]
    for seed, digit, own, form, verdict in [*lines, ("mean", "", adapters, ".1f", "")]:
        means = {}
        for metric in METRIC_NAMES:
            pairs = ((row.before[split].of(metric), row.after[split].of(metric)) for row in own)
            means[metric] = [statistics.mean(when) for when in zip(*pairs, strict=True)]
        total = sum(own[0].before[split].images)
        accuracy = " → ".join(f"{100 * (1 - wrong / total):.2f}" for wrong in means["errors"])
        counts = [f"{before:{form}} → {after:{form}}" for before, after in means.values()]
        yield [seed, digit, f"{accuracy} %", *counts, verdict]


def plot_by_setting(summary: Summary) -> Plot:
    """The count that was asked for, by the setting it is ordered by, with intervals; all weights are a line."""
    metric, series = summary.metric, dict[str, list[Variant]]()  # by what else was varied
    whole = [one for one in summary.variants if one.by is None]
    adapters = [one for one in summary.variants if one.by is not None]
    places = list(dict.fromkeys(str(one.by) for one in adapters))
    for one in adapters:
        series.setdefault(one.series, []).append(one)
    shown = f"{METRIC_NAMES[metric]} ({summary.images})"
    figure, axes = new_axes(spelled(summary.by), shown, 2 * len(series) + len(whole) + 1)
    marks: list[PointLabel] = []
    axes.axhline(summary.base[metric].mean, color=GREY, linestyle=":", linewidth=1.5, label="base")
    for (name, variants), colour, marker in zip(series.items(), itertools.cycle(SERIES), itertools.cycle(MARKERS)):
        x, found = [places.index(str(one.by)) for one in variants], [one.after[metric] for one in variants]
        mean, half = [one.mean for one in found], [one.half or 0.0 for one in found]
        axes.errorbar(x, mean, half, color=colour, marker=marker, linewidth=1.6, capsize=3, label=name or "adapter")
        thresholds = [one.threshold[metric].mean for one in variants]
        label = f"threshold{f' ({name})' if name else ''}"
        axes.plot(x, thresholds, "--", color=ORANGE, marker=".", linewidth=1.2, label=label)
        marks += [PointLabel(x[i], mean[i], f"{one.name}: {found[i]}") for i, one in enumerate(variants)]
    for one in whole:
        axes.axhline(one.after[metric].mean, color=INK, linewidth=1.2, label=one.name)
    axes.set_xticks(range(len(places)), places)
    legend_above(axes)
    values = "; ".join(f"{one.name}: {one.after[metric]}" for one in summary.variants)
    alt = f"{METRIC_NAMES[metric]} by {summary.by}, base {summary.base[metric]}; {values}."
    return Plot("by-setting", figure, alt, TABLE, tuple(marks))


def plot_trade(summary: Summary) -> Plot:
    """Missed images against all errors: a threshold buys the one with the other."""
    missed, errors = f"missed images of the repaired digit ({summary.images})", f"all errors ({summary.images})"
    figure, axes = new_axes(missed, errors, len(summary.variants) + 2)
    before = summary.base["missed"].mean, summary.base["errors"].mean
    axes.plot(*before, "o", color=GREY, markersize=8, linestyle="none", label="base")
    thresholds = [(one.threshold["missed"].mean, one.threshold["errors"].mean) for one in summary.variants]
    x, y = zip(before, *sorted(thresholds, reverse=True), strict=True)
    axes.plot(x, y, "--", color=ORANGE, marker=".", linewidth=1.5, label="threshold at as many missed")
    marks = []
    for one, colour, marker in zip(summary.variants, itertools.cycle(SERIES), itertools.cycle(MARKERS)):
        at = one.after["missed"].mean, one.after["errors"].mean
        ink = INK if one.by is None else colour
        axes.plot(*at, marker, color=ink, markersize=8, linestyle="none", label=one.name)
        marks.append(PointLabel(*at, f"{one.name}: {at[0]:.1f} missed, {at[1]:.1f} errors"))
    legend_above(axes)
    alt = f"Missed images against all errors. {'; '.join(mark.words for mark in marks)}."
    return Plot("trade", figure, alt, TABLE, tuple(marks))


def plot_by_digit(summary: Summary) -> Plot:
    """The map: a row a digit, a column a variant, and the change from the base as a colour."""
    names = [one.name for one in summary.variants]
    values, changes = (np.full((len(summary.digits), len(names)), np.nan) for _ in range(2))
    for cell in summary.cells:
        place = summary.digits.index(cell.digit), names.index(cell.variant)
        values[place], changes[place] = cell.value, cell.change
    reach = max(1.0, float(np.nanmax(np.abs(changes))))
    figure = Figure(figsize=(WIDTH, 1.4 + 0.32 * len(summary.digits)), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(changes, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
    for row, column in np.argwhere(~np.isnan(values)):
        colour = "white" if abs(changes[row, column]) > 0.45 * reach else INK
        axes.text(column, row, f"{values[row, column]:.1f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks(range(len(summary.digits)), [str(digit) for digit in summary.digits])
    axes.set(ylabel="repaired digit", title=f"{capital(METRIC_NAMES[summary.metric])} ({summary.images})")
    axes.tick_params(length=0)
    figure.colorbar(picture, label="change from the base")
    words = "; ".join(f"{cell.digit}, {cell.variant}: {cell.value:.1f}" for cell in summary.cells)
    alt = f"{METRIC_NAMES[summary.metric]} by repaired digit and variant. {words}."
    return Plot("by-digit", figure, alt, TABLE)
