"""The numbers of a report as CSV files."""

import csv
import io
from collections.abc import Mapping, Sequence

from lora_mnist.evaluation.results import Counts, Matrix
from lora_mnist.report.document import AdapterSection, LayerRow, Line, Report, WrongImage
from lora_mnist.runs.artifact import Artifact
from lora_mnist.runs.run import Run

Row = Mapping[str, object]  # by column


def tables_of(run: Run, report: Report) -> dict[str, bytes]:
    """By file name, one beside every plot at least; a table without rows is left out."""
    files: dict[str, Sequence[Row]] = {
        "adapters.csv": [_flat(line) for line in report.side_by_side],
        "base-digits.csv": [row.model_dump() for row in report.base.digits],
        "base-confusion.csv": _cells({"count": report.base.confusion}),
        "base-loss.csv": _losses(run.base),
    }
    for section in report.adapters:
        files[f"{section.name}-digits.csv"] = [row.model_dump() for row in section.digits]
        files[f"{section.name}-confusion.csv"] = _cells(dict(section.confusion))
        files[f"{section.name}-images.csv"] = [_image(one) for one in section.wrong_images or section.examples]
        files[f"{section.name}-layers.csv"] = [_layer(row) for row in section.layers]
        files[f"{section.name}-loss.csv"] = _losses(run.adapter(section.name))
        files[f"{section.name}-strength_curve.csv"] = [point.model_dump() for point in section.strength_curve.points]
        files[f"{section.name}-trade.csv"] = _trade(section)
    return {name: _csv(rows) for name, rows in files.items() if rows}


def _flat(line: Line) -> Row:
    """Counts before and after as columns of their own."""
    row = line.model_dump(exclude={"before", "after"}) | {"on_top_of": " ".join(line.on_top_of)}
    for when, counts in (("before", line.before), ("after", line.after)):
        row |= {f"{key}_{when}": count for key, count in counts.model_dump().items()}
    return row


def _cells(matrices: Mapping[str, Matrix]) -> list[Row]:
    """A row for every cell, a column for every matrix."""
    return [
        {"true": row, "predicted": column, **{name: matrix[row][column] for name, matrix in matrices.items()}}
        for row in range(10)
        for column in range(10)
    ]


def _image(one: WrongImage) -> Row:
    row: dict[str, object] = {"index": one.index, "kind": one.kind, "label": one.label}
    for when, guess in (("before", one.before), ("after", one.after)):
        row |= {f"{key}_{when}": value for key, value in guess.model_dump().items()}
    return row | {"agreed": one.agreed}


def _layer(row: LayerRow) -> Row:
    return row.model_dump() | {"singular_values": " ".join(f"{value:.6g}" for value in row.singular_values)}


def _losses(saved: Artifact) -> list[Row]:
    return [{"step": step, "loss": loss} for step, loss in enumerate(saved.losses(), 1)]


def _trade(section: AdapterSection) -> list[Row]:
    shifted = [_step("threshold", point.shift, point) for point in section.trade.threshold]
    return shifted + [_step("strength", point.strength, point) for point in section.trade.strength]


def _step(way: str, amount: float, counts: Counts) -> Row:
    missed, false_alarms, errors = counts.numbers
    return {"way": way, "amount": amount, "missed": missed, "false_alarms": false_alarms, "errors": errors}


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
