"""Results → text for a terminal of 80 columns, with or without colour."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lora_mnist.evaluation.verdict import paired, verdict

DATASETS = {"mnist": "MNIST", "digits": "scikit-learn's digits, not MNIST"}


def evaluation(document: Mapping[str, Any]) -> RenderableType:
    """Errors per digit on every split, and the confusion matrix of `test`."""
    splits = document["splits"]
    used = "".join(f" + {adapter['name']} at strength {adapter['strength']:g}" for adapter in document["adapters"])
    what = f"checkpoint {document['checkpoint']}" if "checkpoint" in document else f"the base{used}"
    table = Table("digit", title=f"{DATASETS[document['dataset']['name']]}: errors of {what}")
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
    """Parameters, what changed, the proof and the verdict; of an adapter, or of a network trained whole."""
    if not document["kept"]:
        return _not_kept(document)
    comparison, digit, evaluation = document["comparison"], document["digit"], document["evaluation"]
    whole = document["method"] == "full"
    return Group(
        Text(f"Data set: {DATASETS[evaluation['dataset']['name']]}"),
        Text(f"All {document['parameters']['trained']:,} weights of a copy trained; the base is as it was.")
        if whole
        else parameters(document["parameters"]),
        summary(comparison, digit),
        *_strength(document),
        excuses(document),
        per_digit(comparison["test"], evaluation["splits"]["test"]["wrong"], digit),
        *([] if whole else [proof(document["proof"])]),
        Text(verdict(comparison["test"], digit, document["threshold"]["splits"]["test"]), style="bold"),
    )


def _strength(document: Mapping[str, Any]) -> list[Text]:
    guard = document.get("guard")
    if not guard or guard["rule"] == "none":
        return []
    kept = "as trained" if guard["strength"] == 1 else f"at {guard['strength']:g} of the trained update"
    return [Text(f"Kept {kept}, which is best on val under --guard {guard['rule']}.")]


def _not_kept(document: Mapping[str, Any]) -> Text:
    guard, digit = document["guard"], document["digit"]
    count = guard["counted"]
    words = {"errors": "errors in all", "missed": f"missed {digit}s"}[count]
    least = min(one[count] for one in guard["tried"])
    name, limit = document["name"], guard["before"][count]
    text = f"Nothing kept: on val there are {limit} {words} without {name}, and {least} or more with it."
    text += " One more adapter has to lower them." if guard["gain"] else ""
    return Text(f"{text} --guard none keeps it as trained. What was kept before is still there.", style="bold")


def excuses(document: Mapping[str, Any]) -> RenderableType:
    """What else would have lowered the missed images: one shifted logit, and the twin where it was trained."""
    test, digit, threshold = document["comparison"]["test"], document["digit"], document["threshold"]
    table = Table("on test", title=f"Digit {digit}, beside what else could be done")
    for heading in (f"missed {digit}s", "claimed", "all errors"):
        table.add_column(heading, justify="right")
    one_number = f"{threshold['shift']:+.2f} on the logit of {digit}, by {threshold['chosen_on']}"
    rows = [("before", test["before"]), (document["name"], test["after"]), (one_number, threshold["splits"]["test"])]
    lines = []
    if twin := document.get("twin"):
        pairs = twin["splits"]["test"]
        kept = "" if twin["strength"] is not None else ", not kept"
        rows.append((f"twin, natural share{kept}", pairs))
        lines = [paired(pairs["all"], "all images"), paired(pairs["digit"], f"the {digit}s")]
    for name, counts in rows:
        table.add_row(name, *(str(counts[key]) for key in ("missed", "claimed", "errors")))
    return Group(table, *map(Text, lines))


def path(results: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What each round of a repair did, if there were several."""
    if len(results) == 1:
        return Group()
    table = Table("round", title="Digit after digit, on test")
    for heading in ("digit", "missed", "claimed", "all errors", "adapter"):
        table.add_column(heading, justify="left" if heading == "adapter" else "right")
    for i, result in enumerate(results, 1):
        if not result["kept"]:
            table.add_row(str(i), str(result["digit"]), "-", "-", "-", "not kept")
            continue
        test = result["comparison"]["test"]
        counts = (f"{test['before'][key]} → {test['after'][key]}" for key in ("missed", "claimed", "errors"))
        table.add_row(str(i), str(result["digit"]), *counts, result["name"])
    return table


def extraction(document: Mapping[str, Any]) -> RenderableType:
    """What an extracted adapter kept of the change, layer by layer, and what it is worth beside the whole of it."""
    facts, test = document["extraction"], document["comparison"]["test"]
    layers = Table("layer", title=f"{facts['checkpoint']} - base, at rank {document['settings']['rank']}")
    for heading in ("rank", "energy kept", "largest singular values"):
        layers.add_column(heading, justify="left" if heading.startswith("largest") else "right")
    for path, row in facts["layers"].items():
        values = " ".join(f"{value:.3g}" for value in row["singular_values"][:6])
        values += " …" if len(row["singular_values"]) > 6 else ""
        layers.add_row(path, str(row["rank"]), f"{100 * row['energy']:.2f} %", values)
    rows = Table("test images", title=f"Digit {document['digit']}: the base, all of the change, the adapter")
    for heading in ("missed", "claimed", "all errors"):
        rows.add_column(heading, justify="right")
    kinds = [("base", test["before"]), (f"{facts['checkpoint']} (all of it)", facts["of_checkpoint"])]
    for name, counts in [*kinds, (f"{document['name']} (adapter)", test["after"])]:
        rows.add_row(name, *(str(counts[key]) for key in ("missed", "claimed", "errors")))
    moved = ", ".join(f"{name} {100 * share:.3g} %" for name, share in facts["left_out"].items() if share)
    return Group(
        Text(f"Data set: {DATASETS[document['evaluation']['dataset']['name']]}"),
        layers,
        Text(f"Left out, since an adapter holds no biases (moved by, of its norm): {moved or 'nothing'}"),
        rows,
        parameters(document["parameters"]),
        excuses(document),
        proof(document["proof"]),
        Text(verdict(test, document["digit"], document["threshold"]["splits"]["test"]), style="bold"),
    )


def merging(document: Mapping[str, Any]) -> RenderableType:
    """Where the merged network lies, and how far its logits are from those of base and adapters."""
    used = " + ".join(f"{adapter['name']} at strength {adapter['strength']:g}" for adapter in document["merged"])
    difference, largest = document["largest_difference"], document["largest_logit"]
    return Group(
        evaluation(document["evaluation"]),
        Text(f"Merged: base + {used}"),
        Text(f"Largest logit difference from the unmerged model: {difference:.1e} of {largest:.3g}"),
    )


def adapters(document: Mapping[str, Any]) -> RenderableType:
    """One line for every adapter, and for every network trained whole."""
    if not document["adapters"]:
        return Text(f"{document['run']} has no adapters yet.")
    title = f"{DATASETS[document['dataset']]}: adapters, with test figures"
    table = Table(box=box.SIMPLE_HEAD, title=title, padding=0)
    table.add_column("adapter", overflow="fold")
    for heading in ("digit", "rank", "numbers", "missed", "claimed", "errors", "proof", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["adapters"]:
        before, after = row["before"], row["after"]
        table.add_row(
            row["name"],
            str(row["digit"]),
            "-" if row["rank"] is None else str(row["rank"]),
            _number(row["parameters"]),
            *(f"{before[key]}→{after[key]}" for key in ("missed", "claimed", "errors")),
            "-" if row["proof"] is None else _mark(row["proof"]),
            _size(row["bytes"]),
        )
    below = [row for row in document["adapters"] if row["on_top_of"]]
    notes = [f"{row['name']} is for use on top of {', '.join(row['on_top_of'])}." for row in below]
    return Group(table, *map(Text, notes))


def sizes(document: Mapping[str, Any]) -> RenderableType:
    """Numbers that full fine-tuning and LoRA train, a row per rank."""
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in document["layers"].values())
    table = Table("rank")
    for heading in ("LoRA", "share", "fewer"):
        table.add_column(heading, justify="right")
    for row in document["ranks"]:
        fewer = f"{1 / row['share']:,.1f} x"
        table.add_row(str(row["rank"]), f"{row['lora']:,}", f"{100 * row['share']:.2f} %", fewer)
    return Group(Text(f"Full: {document['full']:,} numbers in {shapes}{' and biases' * document['biases']}"), table)


def parameters(table: Mapping[str, Any]) -> RenderableType:
    """Shapes per layer, totals, and the share that the adapter adds."""
    rows = Table("layer", "W", "bias", "A", "B", title="Parameters")
    for row in table["layers"]:
        rows.add_row(row["layer"], *(_shape(row[key]) for key in ("weight", "bias", "lora_A", "lora_B")))
    total = f"{table['base']:,} frozen + {table['added']:,} trained = {table['total']:,}"
    adapted = [row for row in table["layers"] if row["lora_A"]]
    small = [row["layer"] for row in adapted if row["lora_A"][0] > min(row["weight"])]
    note = f"The rank is above the smaller side of {', '.join(small)}: more numbers than it can use."
    return Group(rows, Text(f"{total} ({100 * table['share']:.3f} % added)"), *([Text(note)] if small else []))


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
    for entry in document["checkpoints"]:
        parts.append(Text.assemble(_mark(entry["passed"]), f"  {entry['name']}: bytes, seal, stored logits"))
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


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _number(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count:,}"
