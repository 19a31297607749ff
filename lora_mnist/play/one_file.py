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
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import nn

from lora_mnist import __version__
from lora_mnist.errors import ProofError, UsageError
from lora_mnist.evaluation.metrics import held_out_logits, require_finite
from lora_mnist.evaluation.verdict import verdict_of
from lora_mnist.lora import base_tensors, copies_of, switch, updates_of
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.report.page import policy_hash, source
from lora_mnist.runs.artifact import Artifact
from lora_mnist.runs.atomic import require_unused, write_file
from lora_mnist.runs.schemas import AppliedAdapter
from lora_mnist.settings.config import Count, Document, Many
from lora_mnist.settings.layers import DATASETS
from lora_mnist.settings.request import Applied

STATIC = Path(__file__).parent / "static"
SCRIPTS = "dom words pixels network prepare raster say bars choice sheet keyboard gallery facts main".split()
TEACHING = "api tray lesson teach".split()  # what only the playground has; they follow the others
KINDS = ("int8", "fp16")  # of stored weights: the smallest that keeps `SAME` of the decisions
SAME = 0.9995
STRENGTHS = (0.5, 1.0)  # at which every adapter is checked, beside the base
IMAGES = {"fixed": 60, "broken": 40, "wrong": 40, "all": 200}  # test images on the page; the others are right


class PageExport(Document):
    """What was written, and how the network in it, as stored, differs from ours on held-out images."""

    file: str
    format: str = "html"
    bytes: Count
    weights: str  # int8 (one scale for each output) or fp16; A and B are fp32
    images: Count
    same_decisions: float  # the smallest share, over the base and every adapter at `STRENGTHS`
    largest_difference: float  # of a probability
    base_fingerprint: str
    run_digest: str
    adapters: Many[AppliedAdapter]


def export_page(
    work: Workspace, adapters: Sequence[Applied] = (), out: Path | None = None, allow_unverified: bool = False
) -> PageExport:
    """Write the page with the base and `adapters`, once the weights as stored are seen to decide as ours do.

    Args:
        adapters: the slider begins at the strength of the first.
        out: the file; None is one in the run's exports/, named after the adapters.

    Raises:
        UsageError: the file is there, an adapter trains whole modules, or logits are not finite.
        RunError: an adapter is missing, damaged, or made on another base; or another command writes to the run.
        ProofError: no way to store the weights keeps enough decisions; nothing is written.
        DiskError: the disk refuses.
    """
    with work.writing() if out is None else nullcontext():
        model, used = work.adapted(adapters, allow_unverified)
        names = [one.name for one in used]
        if whole := [name for name in names if copies_of(model, name)]:
            raise UsageError(f"{whole[0]} trains modules whole, and the page holds A and B only.", "Leave it out.")
        file = out or work.run.exports / f"{'-'.join(names) or 'base'}.html"
        require_unused(file, work.request.force)
        switched = [{}] + [dict.fromkeys([name, *work.run.on_top_of(name)], at) for name in names for at in STRENGTHS]
        switched = [{name: at for name, at in one.items() if name in names} for one in switched]
        ours = [_logits(work, model, one) for one in switched]
        for kind in KINDS:
            theirs = [_logits(work, _as_stored(model, kind), one) for one in switched]
            pairs = list(zip(ours, theirs, strict=True))
            same = min(float((one.argmax(1) == other.argmax(1)).float().mean()) for one, other in pairs)
            if same >= SAME:
                break
        else:
            raise ProofError(f"Stored as {kind}, the network decides {1 - same:.2%} otherwise.", f"{file} is not made.")
        largest = max(float((one.softmax(1) - other.softmax(1)).abs().max()) for one, other in pairs)
        decisions = [logits[-len(work.dataset.test) :].argmax(1) for logits in ours]  # the test images come last
        saved = {name: work.run.adapter(name) for name in work.run.adapter_names()}
        packed = [pack_adapter(model, name, saved.get(name)) for name in names]
        held = hold(work, model, kind, packed, decisions[::2])
        words = f"{kind}; {100 * same:.2f} % of {len(ours[0]):,} held-out images are decided as in fp32"
        page, _ = render(work, held, words, strength=adapters[0].strength if adapters else 1.0)
        write_file(file, page)
    return PageExport(
        file=str(file),
        bytes=len(page),
        weights=kind,
        images=len(ours[0]),
        same_decisions=same,
        largest_difference=largest,
        base_fingerprint=work.fingerprint.sha256,
        run_digest=work.run.digest(),
        adapters=used,
    )


def hold(
    work: Workspace,
    model: nn.Module,
    kind: str,
    adapters: Sequence[Mapping[str, Any]],
    decisions: Sequence[torch.Tensor],
) -> dict[str, Any]:
    """What the page's script reads.

    Args:
        kind: of stored weights: `int8`, `fp16` or `fp32`.
        adapters: as `pack_adapter` makes them, or with a `problem`; the last is on first, with those below it.
        decisions: int64 (N,) on `test`, of the base and each adapter: what images are shown depends on them.
    """
    test, on = work.dataset.test, next((one for one in reversed(adapters) if "problem" not in one), None)
    chosen = _choose_images(test.labels.cpu(), decisions[0], decisions[1:] or decisions)
    layers = []
    for layer in model.children():
        stored, scale, _ = _store(layer.weight.detach().cpu(), kind)
        layers.append({"in": layer.in_features, "out": layer.out_features, "weight": _text(stored.t())})
        layers[-1] |= {"bias": _text(layer.bias.detach().float())} | ({"scale": _text(scale)} if kind == "int8" else {})
    return {
        "kind": kind,
        "layers": layers,
        "adapters": list(adapters),
        "on": [on["name"], *on["on_top_of"]] if on else [],
        "test": len(test),
        "images": {
            "pixels": _text(test.images.cpu()[chosen]),
            "labels": test.labels.cpu()[chosen].tolist(),
            "indices": chosen.tolist(),
        },
    }


def pack_adapter(model: nn.Module, name: str, saved: Artifact | None = None) -> dict[str, Any]:
    """An adapter of `model`: its A and B, and what the run says of it, where it is `saved` in one."""
    updates, base = updates_of(model, name), base_tensors(model).values()
    layers = [
        one and {"rank": len(one.lora_A), "scaling": one.scaling, "a": _text(one.lora_A), "b": _text(one.lora_B)}
        for one in (updates.get(layer) for layer, _ in model.named_children())
    ]
    added = sum(one.lora_A.numel() + one.lora_B.numel() for one in updates.values())
    of_base = sum(tensor.numel() for tensor in base)
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
    work: Workspace, held: Mapping[str, Any], weights: str, strength: float = 1.0, teach: bool = False
) -> tuple[bytes, str]:
    """The page that holds `held`, and its content security policy, which allows its own script and style only.

    Args:
        weights: how they are stored, in words.
        strength: at which the slider begins.
        teach: with what the playground adds, which asks the server.
    """
    parts = [*SCRIPTS, *(TEACHING if teach else [])]
    script = '"use strict";\n' + "\n".join((STATIC / f"{part}.js").read_text("utf-8") for part in parts)
    style = "".join((STATIC / name).read_text("utf-8") for name in ("style.css", *(["teach.css"] if teach else [])))
    policy = f"default-src 'none'; script-src '{policy_hash(script)}'; style-src '{policy_hash(style)}'; img-src data:"
    policy += f"; base-uri 'none'; form-action 'none'{'; connect-src ' + repr('self') if teach else ''}"
    run, fingerprint, rare = work.run, work.fingerprint.sha256, work.run.record.rare
    wrong = sum(run.base.evaluation.splits["test"].wrong)
    provenance = {
        "run": str(run.path) if teach else run.path.resolve().name,
        "images": DATASETS[work.dataset.name],
        "base, fingerprint": fingerprint,
        "run, digest": run.digest(),
        "made by": f"lora-mnist {__version__}",
        "weights": weights,
    }
    environment = Environment(
        loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        teach=teach,
        strength=strength,
        rare=rare,
        wrong=wrong,
        held_adapters=held["adapters"],
        images=len(held["images"]["labels"]),
        test=held["test"],
        icon=base64.b64encode((STATIC / "icon.svg").read_bytes()).decode(),
        lora=base64.b64encode(source("lora.svg").encode()).decode(),
        provenance=provenance,
        policy=Markup(policy),
        style=Markup(style),
        script=Markup(script),
        held=Markup(json.dumps(held, separators=(",", ":")).replace("<", "\\u003c")),  # a name could hold </script>
    )
    return page.encode(), policy


def _logits(work: Workspace, model: nn.Module, on: Mapping[str, float]) -> torch.Tensor:
    """(N, 10) of all held-out images."""
    switch(model, on)
    logits = held_out_logits(model, work.dataset)
    require_finite(logits, "Leave that adapter out.")
    return torch.cat(list(logits.values()))


def _store(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight (out, in) as stored, the scale of its rows (out, 1), and the fp32 that the script makes of both."""
    if kind != "int8":
        stored = weight.to({"fp16": torch.float16, "fp32": torch.float32}[kind])
        return stored, torch.ones(len(weight), 1), stored.float()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    stored = (weight / scale).round().to(torch.int8)
    return stored, scale, stored * scale


def _as_stored(model: nn.Module, kind: str) -> nn.Module:
    """A copy whose weights have been stored and read back."""
    read = copy.deepcopy(model)
    for layer in read.children():
        layer.weight.data = _store(layer.weight.data, kind)[2]
    return read


def _text(tensor: torch.Tensor) -> str:
    """The numbers as base64, little-endian."""
    return base64.b64encode(tensor.detach().cpu().contiguous().numpy().tobytes()).decode()


def _choose_images(labels: torch.Tensor, base: torch.Tensor, adapted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Indices of the test images to show, in their order: some that an adapter fixes or breaks, or none gets right."""
    was_right, is_right = base == labels, torch.stack([one == labels for one in adapted])
    kinds = {"fixed": ~was_right & is_right.any(0), "broken": was_right & ~is_right.all(0)}
    kinds |= {"wrong": ~was_right & ~is_right.any(0)}
    chosen: list[int] = []
    for kind, mask in (kinds | {"all": was_right & is_right.all(0)}).items():
        found, most = mask.nonzero().flatten(), IMAGES[kind] - (len(chosen) if kind == "all" else 0)
        spread = torch.linspace(0, len(found) - 1, min(most, len(found))).round().long() if len(found) else []
        chosen += found[spread].tolist()
    return torch.tensor(sorted(chosen))
