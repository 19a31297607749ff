"""The page with a network in it: one HTML file whose script computes what base and adapters predict.

It holds the base's weights, the adapters' A and B and some test images, but no prediction: those are computed in the
browser, by `static/network.js`. The playground serves the same page, with what it adds.
"""

import base64
import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jinja2 import StrictUndefined, Template
from markupsafe import Markup

from lora_mnist import __version__
from lora_mnist.errors import UsageError
from lora_mnist.evaluation.metrics import held_out_logits, require_finite, sample_by_outcome
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.lora import base_tensors, linear_layers, switch, updates_of, whole_modules_of
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.report.page import policy_hash, template_file
from lora_mnist.runs.artifact import Artifact
from lora_mnist.runs.atomic import require_no_file, write_file
from lora_mnist.runs.schemas import AppliedAdapter
from lora_mnist.settings.config import Count, Document, Many
from lora_mnist.settings.layers import DATASETS
from lora_mnist.settings.request import Applied
from lora_mnist.training.model import MLP

STATIC = Path(__file__).parent / "static"
SCRIPTS = (  # in this order they make one script
    *("dom", "words", "pixels", "network", "prepare", "raster", "say", "bars", "choice", "sheet", "keyboard"),
    *("gallery", "facts", "main"),
)
TEACHING = ("api", "tray", "lesson", "teach")  # what only the playground has; they follow the others
KINDS = ("int8", "fp16", "fp32")  # of stored weights: the smallest that keeps `SAME` of the decisions
SAME = 0.9995
STRENGTHS = (0.5, 1.0)  # at which every adapter is checked, beside the base


class PageExportResult(Document):
    """What was written, and how the network in it, as stored, differs from ours on held-out images."""

    file: str
    format: str = "html"
    bytes: Count
    weights: str  # int8 (one scale for each output), fp16 or fp32; A and B are fp32
    images: Count
    same_decisions: float  # the smallest share, over the base and every adapter at `STRENGTHS`
    largest_difference: float  # of a probability
    base_fingerprint: str
    run_digest: str
    adapters: Many[AppliedAdapter]


def export_page(
    work: Workspace, adapters: Sequence[Applied] = (), out: Path | None = None, allow_unverified: bool = False
) -> PageExportResult:
    """Write the page with the base and `adapters`, once the weights as stored are seen to decide as ours do.

    Args:
        adapters: the slider begins at the strength of the first.
        out: the file; None is one in the run's exports/, named after the adapters.

    Raises:
        UsageError: the file is there, an adapter trains whole modules, or logits are not finite.
        RunError: an adapter is missing, damaged, or made on another base; or another command writes to the run.
        DiskError: the disk refuses.
    """
    with work.writing() if out is None else nullcontext():
        model, used = work.adapted(adapters, allow_unverified)
        names = [one.name for one in used]
        if whole := [name for name in names if whole_modules_of(model, name)]:
            raise UsageError(f"{whole[0]} trains modules whole, and the page holds A and B only.", "Leave it out.")
        file = out or work.run.exports / f"{'-'.join(names) or 'base'}.html"
        require_no_file(file, work.request.force)
        checked: list[dict[str, float]] = [{}]  # what is on: nothing, then each adapter with those below it
        for name in names:
            on = {name, *work.run.on_top_of(name)} & set(names)
            checked += [dict.fromkeys(on, strength) for strength in STRENGTHS]
        kind, same, logits = smallest_weights(work, model, checked)
        stored = {one.reference: work.run.adapter(one.reference) for one in adapters if one.reference in names}
        packed = [pack_adapter(model, name, stored.get(name)) for name in names]
        images, test = len(logits[0][0]), len(work.dataset.test)
        decisions = [ours[-test:].argmax(1) for ours, _ in logits[:: len(STRENGTHS)]]  # test is last
        words = f"{kind}; {100 * same:.2f} % of {images:,} held-out images are decided as in fp32"
        strength = adapters[0].strength if adapters else 1.0
        page, _ = render(work, page_data(work, kind, packed, decisions), words, strength)
        write_file(file, page)
    return PageExportResult(
        file=str(file),
        bytes=len(page),
        weights=kind,
        images=images,
        same_decisions=same,
        largest_difference=max(float((ours.softmax(1) - theirs.softmax(1)).abs().max()) for ours, theirs in logits),
        base_fingerprint=work.fingerprint.sha256,
        run_digest=work.run.digest(),
        adapters=used,
    )


def smallest_weights(
    work: Workspace, model: MLP, switched: Sequence[Mapping[str, float]]
) -> tuple[str, float, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The first of `KINDS` in which the base's weights, A and B apart, can be stored and decide as they do in fp32.

    Args:
        switched: strengths of the adapters of `model`; it has to hold for each of them.

    Returns:
        the kind, the smallest share of decisions that are the same, and for each of `switched` the logits (N, 10) of
        all held-out images: with the weights as they are, and as stored.

    Raises UsageError if logits are not finite.
    """

    def logits(network: MLP, on: Mapping[str, float]) -> torch.Tensor:
        switch(network, on)
        found = held_out_logits(network, work.dataset)
        require_finite(found, "Leave that adapter out.")
        return torch.cat(list(found.values()))

    ours = [logits(model, on) for on in switched]
    for kind in KINDS:
        read = copy.deepcopy(model)
        for layer in linear_layers(read).values():
            layer.weight.data = store_weight(layer.weight.data, kind)[2]
        pairs = [(one, logits(read, on)) for one, on in zip(ours, switched, strict=True)]
        same = min(int((one.argmax(1) == other.argmax(1)).sum()) / len(one) for one, other in pairs)
        if same >= SAME:  # fp32 always does
            break
    return kind, same, pairs


def store_weight(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight (out, in) as stored, the scale of its rows (out, 1), and the fp32 that a reader makes of both."""
    if kind != "int8":
        stored = weight.to({"fp16": torch.float16, "fp32": torch.float32}[kind])
        return stored, torch.ones(len(weight), 1), stored.float()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    stored = (weight / scale).round().to(torch.int8)
    return stored, scale, stored * scale


def page_data(
    work: Workspace, kind: str, adapters: Sequence[Mapping[str, Any]], decisions: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """What the page's script reads: the base of `work`, adapters and test images.

    Args:
        kind: of stored weights: `int8`, `fp16` or `fp32`.
        adapters: as `pack_adapter` makes them, or with a `problem`; the last is on first, with those below it.
        decisions: int64 (N,) on `test`, of the base and each adapter: which images are shown depends on them.
    """
    images, labels, layers = work.dataset.test.images.cpu(), work.dataset.test.labels.cpu(), []
    for layer in linear_layers(work.base).values():
        weight, scale, _ = store_weight(layer.weight.detach(), kind)
        sizes = {"in": layer.in_features, "out": layer.out_features}
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        layers.append(sizes | {"weight": _text(weight.t()), "scale": _text(scale), "bias": _text(bias)})
    on = next((one for one in reversed(adapters) if "problem" not in one), None)
    shown = sample_by_outcome(labels, *decisions)
    return {
        "kind": kind,
        "mean": work.base.mean,  # of grey levels from 0 to 1, and the deviation, as the base wants its pixels
        "std": work.base.std,
        "layers": layers,
        "adapters": list(adapters),
        "on": [on["name"], *on["on_top_of"]] if on else [],
        "test": len(labels),
        "images": {"pixels": _text(images[shown]), "labels": labels[shown].tolist(), "indices": shown.tolist()},
    }


def pack_adapter(model: MLP, name: str, saved: Artifact | None = None) -> dict[str, Any]:
    """An adapter of `model`: its A and B, and what the run says of it, where it is `saved` in one."""
    updates = updates_of(model, name)
    layers = [
        one and {"rank": len(one.lora_A), "scaling": one.scaling, "a": _text(one.lora_A), "b": _text(one.lora_B)}
        for one in map(updates.get, linear_layers(model))
    ]
    added = sum(one.lora_A.numel() + one.lora_B.numel() for one in updates.values())
    of_base = sum(tensor.numel() for tensor in base_tensors(model).values())
    size = f"{added:,} numbers beside the base's {of_base:,} ({100 * added / of_base:.3g} %)"
    packed = {"name": name, "layers": layers, "size": size, "summary": f"{added:,} numbers", "on_top_of": []}
    if saved is None:
        return packed
    record, compared = saved.finetune, saved.analysis.splits["test"]
    content = f"{record.lesson.count} drawings" if record.lesson else f"digit {record.digit}"
    verdict = record.lesson.verdict if record.lesson else verdict_of(saved.analysis, record.digit)
    return packed | {
        "summary": f"{content}, rank {record.rank}",
        "on_top_of": list(record.on_top_of),
        "digit": record.digit,
        "before": compared.before.model_dump(),
        "after": compared.after.model_dump(),
        "verdict": verdict.words,
        "outcome": verdict.outcome,
    }


def render(
    work: Workspace, data: Mapping[str, Any], weights: str, strength: float = 1.0, teach: bool = False
) -> tuple[bytes, str]:
    """The page with `data`, and its content security policy, which allows its own script and style only.

    Args:
        data: what `page_data` makes.
        weights: how they are stored, in words.
        strength: at which the slider begins.
        teach: with what the playground adds, which asks the server.
    """

    def joined(*names: str) -> str:
        return "\n".join((STATIC / name).read_text("utf-8") for name in names)

    script = '"use strict";\n' + joined(*(f"{part}.js" for part in (*SCRIPTS, *(TEACHING if teach else ()))))
    style = joined("style.css", *(["teach.css"] if teach else []))
    policy = f"default-src 'none'; script-src '{policy_hash(script)}'; style-src '{policy_hash(style)}'; img-src data:"
    policy += "; base-uri 'none'; form-action 'none'" + ("; connect-src 'self'" if teach else "")
    repaired = {one["digit"] for one in data["adapters"] if one.get("summary", "").startswith("digit")}
    template = Template(joined("page.html.j2"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = template.render(
        work=work,
        data=data,
        weights=weights,
        strength=strength,
        repaired=" and ".join(f"{digit}s" for digit in sorted(repaired)),
        teach=teach,
        version=__version__,
        dataset=DATASETS[work.dataset.name],
        icon=base64.b64encode(joined("icon.svg").encode()).decode(),
        lora=base64.b64encode(template_file("lora.svg").encode()).decode(),
        policy=Markup(policy),
        style=Markup(style),
        script=Markup(script),
        json=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),  # a name could hold </script>
    )
    return page.encode(), policy


def _text(tensor: torch.Tensor) -> str:
    """The numbers as base64, little-endian."""
    return base64.b64encode(tensor.detach().cpu().contiguous().numpy().tobytes()).decode()
