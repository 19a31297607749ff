"""The commands around pictures of one's own."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lora_mnist.cli import options as o
from lora_mnist.cli.app import command
from lora_mnist.cli.output import show as print_result
from lora_mnist.cli.panels import in_data, in_output
from lora_mnist.errors import UsageError

Images = Annotated[
    list[Path] | None,
    typer.Argument(
        help="PNG, JPEG, WebP or .npy of one digit, of any size, dark on light or light on dark.",
        metavar="IMAGE",
        rich_help_panel="Data",
    ),
]
Index = Annotated[list[int] | None, in_data("--index", "Test image to take instead of a file; the first is 0.", "N")]
Show = Annotated[
    Path | None,
    in_output("--show", "Write the 28×28 picture that the networks see, of one picture, as PNG.", "FILE"),
]
Replace = Annotated[bool, in_output("--force", "Let --show replace a file that is there.")]
FileFormat = Annotated[
    str,
    in_output("--format", "ONNX, which needs the extra onnx, or what torch.export.load reads.", "onnx|torch"),
]
Out = Annotated[
    Path | None,
    in_output("--out", "File to write.", "FILE", show_default="in the run's exports/, named after the adapters"),
]


@command
def predict(
    *,
    place: o.Place,
    images: Images = None,
    index: Index = None,
    adapters: o.Adapters,
    show: Show = None,
    force: Replace = False,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Say what the base takes a picture for, and what each adapter does, or those that are named.

    Example: lora-mnist predict three.png
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import predictions

    if bool(images) == bool(index):
        cause = "Both files and test images are given." if images else "There is no picture to look at."
        raise UsageError(cause, "Name files, or choose test images by --index.")
    if show:
        pipeline.require_one_picture(len(images or index or ()), show, force)

    work = pipeline.open_workspace(o.request_of(place, machine, output, o.Recipe()))
    pictures = [*pipeline.pictures_in(images or (), work.dataset.name), *pipeline.pictures_of(work, index or ())]
    chosen = replace(adapters, adapter=adapters.adapter or work.run.adapter_names()).applied()
    result = pipeline.predict(work, pictures, chosen, adapters.allow_unverified)
    if show:
        pipeline.write_picture(pictures[0], show)
    print_result(result, [predictions.predictions], output, show)


@command
def export(
    *,
    place: o.Place,
    force: o.Force = False,
    adapters: o.Adapters,
    format: FileFormat = "onnx",
    out: Out = None,
    machine: o.Machine,
    output: o.Output,
) -> None:
    """Write the base, with adapters merged into it, as one ONNX file, which phones and browsers run.

    Example: lora-mnist export --adapter digit9-r1
    """
    from lora_mnist import pipeline
    from lora_mnist.cli import predictions

    work = pipeline.open_workspace(o.request_of(place, machine, output, o.Recipe(force=force)))
    provenance = pipeline.export(work, adapters.applied(), format, out, adapters.allow_unverified)
    print_result(provenance, [predictions.exported], output, provenance.file)
