"""The sentences of the page that are put together, and its glossary."""

import re
from collections.abc import Sequence

from lora_mnist.report.document import AdapterSection, LayerRow, Report

NBSP = "\N{NO-BREAK SPACE}"
TITLES = {
    "lora": "LoRA",
    "adapter": "adapter",
    "rank": "rank",
    "update": "ΔW, the update",
    "norm": "‖ΔW‖ / ‖W‖",
    "frozen": "frozen",
    "missed": "missed",
    "false_alarms": "false alarms",
    "accuracy": "accuracy, recall",
    "strength": "strength",
    "threshold": "shifted threshold",
    "control": "control",
    "focus": "focus",
    "guard": "guard",
    "val": "val, test",
    "p": "p, more than chance",
    "logit": "logit",
}
GLOSSARY = {
    "lora": "Low-rank adaptation: the weights W of a trained network stay as they are, and a product of two thin"
    " matrices, B A, is trained and added to them (Hu and others, arXiv 2106.09685).",
    "adapter": "The trained matrices A and B of every layer, and how they are scaled. It can be added to the base and"
    " taken off again.",
    "rank": "How thin A and B are: A has that many rows, B that many columns. A higher rank can express more and costs"
    " more numbers.",
    "update": "What an adapter adds to the weights W of a layer: scaling times B A.",
    "norm": "How large the update of a layer is beside the layer's own weights; both are Frobenius norms, the root of"
    " the sum of all squares. At 0 % the layer is as it was; at 100 % the update is as large as the weights.",
    "frozen": "Not trained. Every byte of the base is compared with what it was before.",
    "missed": "Images of the digit that are taken for another one: false negatives of that digit.",
    "false_alarms": "Images of other digits that are taken for this one: false positives of that digit.",
    "accuracy": "Accuracy is the share of all images that are right, recall the share of one digit's images that are.",
    "strength": "A factor on the whole update when it is applied: 0 is the base, 1 the adapter as it was kept.",
    "threshold": "One number added to the digit's logit: what can be had without any training.",
    "control": "The same adapter trained as long on uniformly sampled images: no focus, no hard-example sampling."
    " It shows how much of a repair is just further training.",
    "focus": "The share of every fine-tuning batch that is drawn from the digit under repair.",
    "guard": "The rule on val by which an adapter is kept, and how strongly: by default no digit may get worse beyond"
    " chance.",
    "val": "Two sets of images that nothing was trained on. Decisions are taken on val; test is only reported.",
    "p": "How often chance alone would do at least this much, if before and after were equally good (McNemar's exact"
    " test on the same images). Small means more than chance: at most 0.05, and 0.005 where ten digits are looked at.",
    "logit": "The network's score for one digit, before scores become probabilities. The highest one wins.",
}


def title_of(report: Report) -> str:
    """The page's heading."""
    if not report.adapters:
        return "The base, before any repair"
    if len(report.adapters) > 1:
        return "What the adapters did"
    (one,) = report.adapters
    return f"What LoRA learnt from {one.purpose}" if one.lesson else f"Did LoRA repair the {one.digit}?"


def side_effects(section: AdapterSection) -> str:
    """What happened to the other nine digits: the largest side effect, and whether it is more than chance."""
    facts, rows = section.verdict.facts, {row.digit: row for row in section.digits}
    if facts.worse:
        return tied(f"{section.verdict.side_effects}")
    row = rows[facts.largest_side_effect]
    if row.net > 0:
        change = f"+{row.net:,} error{'' if row.net == 1 else 's'}, {row.before:,} → {row.after:,}"
        return tied(f"None beyond chance. The largest is digit {row.digit}: {change} (p {chance(row.p)}).")
    return f"None. {section.verdict.side_effects}"


def how_large(layers: Sequence[LayerRow]) -> str:
    """What the largest ‖ΔW‖ / ‖W‖ of a layer means."""
    largest = max(layers, key=lambda row: row.relative_norm)
    share, many = f"{100 * largest.relative_norm:.1f}{NBSP}%", f"{len(largest.singular_values)}"
    where = f"In {largest.layer} the update is {share} as large as the weights that it is added to"
    if largest.relative_norm >= 1:
        return (
            f"{where}: it outweighs them. That is no fault in itself, since it acts in {many} directions at the most"
            " and leaves all others alone. But along those the layer now does what the adapter says."
        )
    if largest.relative_norm >= 0.1:
        return f"{where}: the layer changes a good deal, though in {many} directions at the most."
    return f"{where}: a small correction, in {many} directions at the most."


def tied(words: str) -> str:
    """With nothing broken between a number and its unit, or a p and its value."""
    return re.sub(r" (?=%)|(?<=\bp) (?=[=<])|(?<=\bp [=<]) ", NBSP, words)


def chance(p: float) -> str:
    """What stands after the letter p."""
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"


def sure(probability: float) -> str:
    """In whole per cent, without claiming certainty."""
    percent = f"{100 * probability:.0f}"
    return {"0": f"<{NBSP}1{NBSP}%", "100": f">{NBSP}99{NBSP}%"}.get(percent, f"{percent}{NBSP}%")


def signed(change: int) -> str:
    """With a sign, and a minus that is one."""
    return f"{change:+,}".replace("-", "−") if change else "0"
