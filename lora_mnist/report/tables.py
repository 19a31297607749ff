"""The numbers of a report as CSV files."""

import csv
import io
from collections.abc import Mapping, Sequence

from lora_mnist.evaluation.findings import Counts
from lora_mnist.report.document import AdapterSection, Line, Report

Row = Mapping[str, object]  # by column


def tables_of(report: Report) -> dict[str, bytes]:
    """By file name; a table without rows is left out."""
    files: dict[str, Sequence[Row]] = {"adapters.csv": [_flat(line) for line in report.side_by_side]}
    for section in report.adapters:
        files[f"{section.name}-digits.csv"] = [row.model_dump() for row in section.digits]
        files[f"{section.name}-confusion.csv"] = _cells(section)
        files[f"{section.name}-dial.csv"] = [point.model_dump() for point in section.dial.points]
        files[f"{section.name}-trade.csv"] = _trade(section)
    return {name: _csv(rows) for name, rows in files.items() if rows}


def _flat(line: Line) -> Row:
    """Counts before and after as columns of their own."""
    row = line.model_dump(exclude={"before", "after"}) | {"on_top_of": " ".join(line.on_top_of)}
    for when, counts in (("before", line.before), ("after", line.after)):
        row |= {f"{key}_{when}": count for key, count in counts.model_dump().items()}
    return row


def _cells(section: AdapterSection) -> list[Row]:
    before, after = section.confusion.before, section.confusion.after
    return [
        {"true": row, "predicted": column, "before": before[row][column], "after": after[row][column]}
        for row in range(10)
        for column in range(10)
    ]


def _trade(section: AdapterSection) -> list[Row]:
    shifted = [_step("threshold", point.shift, point) for point in section.trade.threshold]
    return shifted + [_step("strength", point.strength, point) for point in section.trade.strength]


def _step(way: str, amount: float, counts: Counts) -> Row:
    missed, claimed, errors = counts.numbers
    return {"way": way, "amount": amount, "missed": missed, "claimed": claimed, "errors": errors}


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
