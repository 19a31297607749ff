"""The base with adapters in its weights as one file for elsewhere: ONNX for phones and browsers, torch.export's, or,
of an imported base, one like the file that it came from."""

import copy
import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from lora_mnist import __version__
from lora_mnist.errors import ProofError, UsageError, shown
from lora_mnist.evaluation.metrics import held_out_logits, require_finite
from lora_mnist.evaluation.proof import largest_of
from lora_mnist.lora import merged_copy
from lora_mnist.pipeline.state_dict import original_content, tensors_in
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.runs.atomic import require_no_file, write_file
from lora_mnist.runs.schemas import AppliedAdapter, DatasetName
from lora_mnist.settings.config import Count, Document, Many, Maybe
from lora_mnist.settings.request import Applied
from lora_mnist.training.model import BATCH, MLP, normalise

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
FORMATS = (*SUFFIXES, "original")  # the last has the suffix of the file that the base came from
ONNX_NEEDS = ("onnx", "onnxruntime", "onnxscript")
OPSET, IR = 18, 8  # operators and file format of ONNX 1.13 (December 2022), which runtimes have had years to learn
IMAGES, LOGITS = "images", "logits"  # the names of input and output
ABOUT = "lora_mnist"  # under which the provenance stands in the file
Network = Callable[[torch.Tensor], torch.Tensor]  # images as below -> logits
TOLERANCE = 1e-4  # of the largest logit: other libraries sum in another order
ROUNDED = 0.05  # likewise, where a file's own dtype has only 8 or 11 bits of a merged weight


class ExportMetadata(Document):
    """What stands in the file itself, as JSON under the name lora_mnist; an original has no place for it."""

    lora_mnist: str
    run: str
    dataset: DatasetName
    base_fingerprint: str
    adapters: Many[AppliedAdapter]
    input: str = f"{IMAGES}: uint8 (N, 28, 28), light on dark"
    output: str = f"{LOGITS}: float32 (N, 10)"


class ExportResult(Document):
    """What was written, and the largest difference of its logits from ours on held-out images."""

    file: str
    format: str
    opset: Maybe[Count] = None
    bytes: Count
    images: Count
    largest_difference: float
    largest_logit: float
    provenance: ExportMetadata


class PlainNetwork(nn.Module):
    """uint8 images (N, 28, 28) → logits (N, 10), of torch's own layers only, which exporters know."""

    def __init__(self, network: MLP):
        super().__init__()
        self.mean, self.std = network.mean, network.std
        *hidden, last = network.children()
        self.layers = nn.Sequential(*(module for layer in hidden for module in (layer, nn.ReLU())), last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(normalise(images, self.mean, self.std).flatten(1))  # (N, 28, 28) -> (N, 784) -> (N, 10)


def export(
    work: Workspace,
    adapters: Sequence[Applied] = (),
    format: str = "onnx",
    out: Path | None = None,
    allow_unverified: bool = False,
) -> ExportResult:
    """Write the base with `adapters` merged into its weights, once its logits are seen to be ours.

    Args:
        format: `onnx`, `torch`, or `original`: names, order, dtypes and format of the file that the base came from.
        out: the file; None is one in the run's exports/, named after the adapters.

    Raises:
        UsageError: the format is unknown or not for this base, what it needs is not installed, the file is there, or
            logits are not finite.
        LoRAError: the merged weights are not finite.
        RunError: an adapter is missing, damaged, or made on another base; or another command writes to the run.
        ProofError: the exported network's logits are not ours; nothing is written.
        DiskError: the disk refuses.
    """
    require_format(format)
    source = work.run.record.source
    if format == "original" and source is None:
        cause = f"The base of {work.run.path} was trained here, so it has no original file format."
        raise UsageError(cause, "Take another --format; only the base of `lora-mnist import` has one.")
    with work.writing() if out is None else nullcontext():
        model, used = work.adapted(adapters, allow_unverified)
        name = "-".join(one.name for one in used) or "base"
        original = source if format == "original" else None
        suffix = Path(original.file).suffix if original else SUFFIXES[format]
        file = out or work.run.exports / f"{name}{suffix}"
        require_no_file(file, work.request.force)
        ours = held_out_logits(model, work.dataset)
        require_finite(ours, "Choose a smaller --strength.")
        about = ExportMetadata(
            lora_mnist=__version__,
            run=work.run.path.resolve().name,
            dataset=DatasetName(name=work.dataset.name, sha256=work.dataset.sha256),
            base_fingerprint=work.fingerprint.sha256,
            adapters=used,
            **({"input": _wanted(work.base)} if original else {}),
        )
        merged = merged_copy(model) if used else model
        assert isinstance(merged, MLP)
        if original:
            content, written = original_content(original, merged), copy.deepcopy(merged)
            written.load_state_dict(tensors_in(original, content))
            theirs = held_out_logits(written, work.dataset)
        else:
            content, theirs = _exported(work, merged, format, about.model_dump_json())
        largest = largest_of(ours.values())
        difference = largest_of(part - theirs[split] for split, part in ours.items())
        tolerance = ROUNDED if original and original.rounds else TOLERANCE
        if not difference <= tolerance * largest:  # nor if it is NaN
            raise ProofError(
                f"The exported network's logits differ from ours by {difference:.1e}, and the largest is"
                f" {largest:.3g}.",
                f"{file} was not written. Report that, with the versions that `lora-mnist doctor` prints.",
            )
        write_file(file, content)
    return ExportResult(
        file=str(file),
        format=format,
        opset=OPSET if format == "onnx" else None,
        bytes=len(content),
        images=sum(map(len, ours.values())),
        largest_difference=difference,
        largest_logit=largest,
        provenance=about,
    )


def require_format(format: str) -> None:
    """Raises UsageError if the format is unknown, or what it needs is not installed."""
    if format not in FORMATS:
        raise UsageError(f"`format` (={shown(format)}) must be {', '.join(FORMATS)} or html.", "Correct --format.")
    if missing := [name for name in ONNX_NEEDS if format == "onnx" and find_spec(name) is None]:
        raise UsageError(
            f"ONNX needs {' and '.join(missing)}, not installed here.",
            "Install the extra `onnx`, in a checkout by pip install -e '.[onnx]', or take --format torch.",
        )


def _wanted(network: MLP) -> str:
    """The input of a network without its normalisation, in words."""
    return f"(grey values from 0 to 1 - {network.mean:g}) / {network.std:g}, light on dark: float32 (N, 784)"


def _exported(work: Workspace, merged: MLP, format: str, about: str) -> tuple[bytes, dict[str, torch.Tensor]]:
    """The file's content, and the logits (N, 10) by split of the network that is read back from it."""
    plain = PlainNetwork(merged).cpu().eval().requires_grad_(False)
    through = _through_onnx if format == "onnx" else _through_torch
    # exporters print what they are at, and warn of what they themselves still call by its old name
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        example = torch.zeros(2, 28, 28, dtype=torch.uint8)
        batch = {IMAGES: {0: torch.export.Dim("N")}}
        program = torch.export.export(plain, (example,), dynamic_shapes=batch)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # places in source files of this machine
        content, network = through(program, about)
        with torch.inference_mode():
            batches = {split: images.cpu().split(BATCH) for split, images in work.images.items()}
            return content, {split: torch.cat([network(one) for one in parts]) for split, parts in batches.items()}


def _through_torch(program: torch.export.ExportedProgram, about: str) -> tuple[bytes, Network]:
    """A file's content, and the network that is read back from it."""
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={f"{ABOUT}.json": about})
    return content.getvalue(), torch.export.load(io.BytesIO(content.getvalue())).module()


def _through_onnx(program: torch.export.ExportedProgram, about: str) -> tuple[bytes, Network]:
    """The same for ONNX, read by ONNX Runtime."""
    import onnx
    import onnxruntime

    exported = torch.onnx.export(
        program, dynamo=True, input_names=[IMAGES], output_names=[LOGITS], opset_version=OPSET, verbose=False
    )
    assert exported is not None  # as it is without a file to write
    model = exported.model_proto
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del part.metadata_props[:]  # which torch operation each came from
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = "N"
    model.ir_version = IR
    onnx.helper.set_model_props(model, {ABOUT: about})
    onnx.checker.check_model(model)
    content = model.SerializeToString(deterministic=True)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run([LOGITS], {IMAGES: images.numpy()})[0])
