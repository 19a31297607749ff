"""Results → text for a terminal of 80 columns, with or without colour."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lora_mnist.evaluate import verdict

DATASETS = {"mnist": "MNIST", "digits": "scikit-learn's digits, not MNIST"}


def evaluation(document: Mapping[str, Any]) -> RenderableType:
    """Errors per digit on every split, and the confusion matrix of `test`."""
    splits = document["splits"]
    used = "".join(f" + {adapter['name']} at strength {adapter['strength']:g}" for adapter in document["adapters"])
    table = Table("digit", title=f"{DATASETS[document['dataset']['name']]}: errors of the base{used}")
    for split in splits:
        for heading in (f"{split} images", "wrong", "%"):
            table.add_column(heading, justify="right")
    for digit in range(10):
        cells = [_share(splits[split]["wrong"][digit], sum(splits[split]["confusion"][digit])) for split in splits]
        table.add_row(str(digit), *(cell for group in cells for cell in group))
    table.add_section()
    cells = [_share(sum(splits[split]["wrong"]), splits[split]["count"]) for split in splits]
    table.add_row("all", *(cell for group in cells for cell in group))
    accuracy = ", ".join(f"{100 * part['accuracy']:.2f} % on {split}" for split, part in splits.items())
    return Group(table, Text(f"Accuracy {accuracy}."), confusion(splits["test"]["confusion"]))


def confusion(matrix: Sequence[Sequence[int]]) -> Table:
    """Rows true digit, columns predicted digit; zeros are dots, so that errors stand out."""
    table = Table("true", title="Confusion on test (columns: predicted digit)", padding=(0, 1))
    for digit in range(10):
        table.add_column(str(digit), justify="right", min_width=4)
    for digit, row in enumerate(matrix):
        table.add_row(str(digit), *(_count(count, digit == column) for column, count in enumerate(row)))
    return table


def finetuning(document: Mapping[str, Any]) -> RenderableType:
    """Parameters, what changed, the proof and the verdict."""
    comparison, digit, evaluation = document["comparison"], document["digit"], document["evaluation"]
    return Group(
        Text(f"Data set: {DATASETS[evaluation['dataset']['name']]}"),
        parameters(document["parameters"]),
        summary(comparison, digit),
        per_digit(comparison["test"], evaluation["splits"]["test"]["wrong"], digit),
        proof(document["proof"]),
        Text(verdict(comparison["test"], digit), style="bold"),
    )


def parameters(table: Mapping[str, Any]) -> RenderableType:
    """Shapes per layer, totals, and the share that the adapter adds."""
    rows = Table("layer", "W", "bias", "A", "B", title="Parameters")
    for row in table["layers"]:
        rows.add_row(row["layer"], *(_shape(row[key]) for key in ("weight", "bias", "lora_A", "lora_B")))
    total = f"{table['base']:,} frozen + {table['added']:,} trained = {table['total']:,}"
    return Group(rows, Text(f"{total} ({100 * table['share']:.3f} % added)"))


def summary(comparison: Mapping[str, Any], digit: int) -> Table:
    """Missed, claimed and all errors of every split, before and after, together."""
    table = Table("", title=f"Digit {digit} before and after")
    for split in comparison:
        for heading in (f"{split} before", "after", "change"):
            table.add_column(heading, justify="right")
    names = {"missed": f"missed {digit}s", "claimed": f"claimed as {digit}", "errors": "all errors"}
    for key, words in names.items():
        cells = [(part["before"][key], part["after"][key]) for part in comparison.values()]
        table.add_row(words, *(cell for b, a in cells for cell in (str(b), str(a), _change(a - b))))
    return table


def per_digit(test: Mapping[str, Any], wrong_after: Sequence[int], target: int) -> Table:
    """Wrong test images of every digit before and after, with what was fixed and broken."""
    table = Table("digit", title="Wrong test images per digit")
    for heading in ("before", "fixed", "broken", "after", "change"):
        table.add_column(heading, justify="right")
    for digit in range(10):
        fixed, broken, after = test["fixed"][digit], test["broken"][digit], wrong_after[digit]
        name = f"{digit} (target)" if digit == target else str(digit)
        table.add_row(name, *map(str, (after + fixed - broken, fixed, broken, after)), _change(broken - fixed))
    return table


def proof(findings: Mapping[str, Any]) -> RenderableType:
    """The three claims, one line each."""
    frozen, off, on = findings["frozen"], findings["off"], findings["on"]
    lines = {
        f"frozen: {frozen['tensors']} base tensors, {frozen['bytes']:,} bytes, all as before": frozen["passed"],
        f"off: logits of {off['images']:,} images bit-identical to the base": off["passed"],
        f"on: W + scaling · B A to {on['largest_difference']:.1e} of {on['largest_logit']:.3g}": on["passed"],
    }
    return Group(*(Text.assemble(_mark(passed), "  ", line) for line, passed in lines.items()))


def verification(document: Mapping[str, Any]) -> RenderableType:
    """The findings of `verify`: the base, then every adapter."""
    parts: list[RenderableType] = []
    if "dataset" in document:  # not known if the base is damaged
        parts.append(Text(f"Data set: {DATASETS[document['dataset']]}"))
    parts.append(Text.assemble(_mark(document["base"]["passed"]), "  base: bytes, seal, stored logits and evaluation"))
    for entry in document["adapters"]:
        parts.append(Text.assemble(_mark(entry["passed"]), f"  {entry['name']}"))
        if "frozen" in entry:
            parts.append(proof(entry))
    return Group(*parts)


def _share(wrong: int, count: int) -> tuple[str, str, str]:
    return str(count), str(wrong), f"{100 * wrong / count:.2f}" if count else "-"


def _count(count: int, on_diagonal: bool) -> Text:
    return Text(str(count) if count else "·", style="dim" if on_diagonal or not count else "bold")


def _shape(shape: Sequence[int] | None) -> str:
    return " x ".join(map(str, shape)) if shape else "-"


def _change(change: int) -> Text:
    style = "red" if change > 0 else "green" if change < 0 else ""
    return Text(f"{change:+d}" if change else "0", style=style)


def _mark(passed: bool) -> Text:
    return Text("passed", style="green") if passed else Text("FAILED", style="bold red")
