"""Make a network that was trained elsewhere the base of a run: read, measure, evaluate, fingerprint, save."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from lora_mnist.datasets.dataset import Split, choose_dataset, data_folder, load
from lora_mnist.errors import RunError, UsageError
from lora_mnist.evaluation.significance import mcnemar
from lora_mnist.pipeline.pretrain import PretrainResult, result_of, save_base
from lora_mnist.pipeline.state_dict import LIBRARY, read_layers
from lora_mnist.pipeline.workspace import Workspace, workspace_with
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import record_provenance
from lora_mnist.settings.config import Maybe, ModelSettings, resolve
from lora_mnist.settings.request import Request
from lora_mnist.training.device import prepare_device
from lora_mnist.training.model import BATCH, MEAN, MLP, STD, normalise

HALF = {"val_from": "test", "val_share": 0.5}  # its training probably saw all training images
PIXELS = {  # how networks want theirs, by the options that say so: mean and std of grey values from 0 to 1
    f"--mean {MEAN} --std {STD}": (MEAN, STD),
    "--pixels 0-1": (0.0, 1.0),
    "--pixels 0-255": (0.0, 1 / 255),
    "--mean 0.5 --std 0.5": (0.5, 0.5),
    "--mean 1 --std -1": (1.0, -1.0),  # dark on light
    "--mean 0.8693 --std -0.3081": (0.8693, -STD),
}
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "ELU": F.elu,
    "leaky ReLU": lambda x: F.leaky_relu(x, 0.1),
    "nothing": torch.clone,
}
POOR = 0.5  # of val right: whatever it was trained on, it was not this
CLEAR = 1e-3  # p of McNemar's test, for one of a dozen guesses to count as better
ALIKE = 0.01  # of val: a network with ReLU hardly notices a factor, so ways closer than this are hardly told apart
SAMPLE = 1000  # images that other activations are tried on


class ImportResult(PretrainResult):
    """What an imported base does; and the share of `val` that it reads right, by how it may want its pixels."""

    pixels: dict[str, float]  # what was asked for first
    architecture: ModelSettings
    better: Maybe[str] = None  # the way that fits clearly better than that, if there is one

    @property
    def best(self) -> str:
        """The way to take pixels that fits: what was asked for, unless another is clearly better."""
        return self.better or next(iter(self.pixels))

    @property
    def alike(self) -> list[str]:
        """The ways that accuracy hardly tells from the best one."""
        least = self.pixels[self.best] - ALIKE
        return [way for way, share in self.pixels.items() if way != self.best and share > least]


def import_base(
    request: Request, file: Path, mean: float | None = None, std: float | None = None, pixels: str | None = None
) -> tuple[Workspace, ImportResult]:
    """Make the network in `file` the base of a run, its tensors byte for byte, and open that for later stages.

    Args:
        mean, std: how it wants its pixels; None: MNIST's usual, or those of `pixels` as they are.
        pixels: `0-1`, the default, or `0-255`: what `mean` and `std` are of.

    Raises:
        RunError: the file holds no such network, the network is none for these images, or the run has a base already.
        UsageError: a setting is wrong.
        DataError: the images cannot be had.
    """
    # what the file holds, before anything else is touched
    asked = _normalisation(mean, std, pixels)
    layers, source = read_layers(file)
    names = [f"linear{i}" for i in range(1, len(layers) + 1)]
    biases = ["bias" in layer.tensors for layer in layers]
    shape = {"hidden": [layer.sizes[1] for layer in layers[:-1]], "bias": biases if len({*biases}) > 1 else biases[0]}

    run = Run(request.run)
    with run.writing():
        if not request.force:
            if run.base.is_finished:
                raise RunError(f"{run.base.folder} is finished already.", "Choose another --run, or use --force.")
            run.require_vacant()

        # the images, half of `test` as `val`
        data, device = data_folder(request.data), prepare_device(request.device, request.threads)
        name = choose_dataset(request.wanted_dataset(None), data, request.quiet, request.offline)
        given = {
            "data": {"dataset": name, **HALF},
            "model": {**shape, "mean": asked[0], "std": asked[1]},
            "pretrain": {"rare_digit": "none"},
            "finetune": {"targets": names},
            "teach": {"targets": names},
        }
        settings = resolve([*request.config_layers(None, name), given], name)
        dataset = load(name, data, settings.data.val_share, settings.data.split_seed, device, "test")

        # the network, and whether it is one that these images and ReLU suit
        started = time.perf_counter()
        model = MLP(**settings.model.model_dump())
        tensors = zip(names, layers, strict=True)
        model.load_state_dict({f"{name}.{kind}": one for name, layer in tensors for kind, one in layer.tensors.items()})
        model.to(device)
        shares, better = _measure_fit(file, model, dataset.val, asked)
        provenance = record_provenance(device, started, data if name == "mnist" else None)
        save_base(run, model, settings, dataset, provenance, source=source)
    work = workspace_with(request, run, settings, device, dataset)
    return work, ImportResult(**dict(result_of(work)), pixels=shares, architecture=settings.model, better=better)


def _normalisation(mean: float | None, std: float | None, pixels: str | None) -> tuple[float, float]:
    """Mean and std of grey values from 0 to 1. Raises UsageError."""
    if (mean is None) != (std is None):
        raise UsageError("Only one of --mean and --std is given.", "Give both, such as --mean 0.5 --std 1.")
    if pixels not in (None, "0-1", "0-255"):
        raise UsageError(f"`pixels` (={pixels!r}) must be 0-1 or 0-255.", "Correct --pixels.")
    if mean is None or std is None:
        mean, std = (MEAN, STD) if pixels is None else (0.0, 1.0)
    white = 255 if pixels == "0-255" else 1
    return mean / white, std / white


@torch.inference_mode()
def _right(
    model: MLP, part: Split, mean: float, std: float, activation: Callable[[torch.Tensor], torch.Tensor] = F.relu
) -> torch.Tensor:
    """Bool (N,): which images it reads right if it wants its pixels so, and has that between its layers."""
    *hidden, last = model.children()
    right = []
    for images, labels in zip(part.images.split(BATCH), part.labels.split(BATCH), strict=True):
        x = normalise(images, mean, std).flatten(1)  # (B, 28, 28) -> (B, 784)
        for linear in hidden:
            x = activation(linear(x))
        right.append(last(x).argmax(1) == labels)
    return torch.cat(right).cpu()


def _is_clearly_better(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Of two masks (N,) of what is right."""
    fixed, broken = int((one & ~other).sum()), int((~one & other).sum())
    return fixed > broken and mcnemar(fixed, broken) < CLEAR


def _measure_fit(
    file: Path, model: MLP, val: Split, pixels: tuple[float, float]
) -> tuple[dict[str, float], str | None]:
    """The share of `val` that it reads right, by how it may want its pixels; and the way that is clearly better.

    A state dict does not say that, nor what stood between its layers, but what it reads does.

    Raises RunError if it reads clearly more with something else than ReLU, or little with what was asked for or at all.
    """
    asked = next((way for way, known in PIXELS.items() if known == pixels), "--mean {:g} --std {:g}".format(*pixels))
    ways = {asked: pixels, **PIXELS}
    measured = {way: _right(model, val, *wanted) for way, wanted in ways.items()}
    shares = {way: float(right.float().mean()) for way, right in measured.items()}
    most = max(shares.values())
    best = next(way for way in ways if shares[way] > most - ALIKE)
    sample = slice(None, None, -(-len(val) // SAMPLE))
    with_relu, part = measured[best][sample], Split(val.images[sample], val.labels[sample])
    others = {
        (name, way): _right(model, part, *ways[way], activation)
        for way in (ways if shares[best] < POOR else (asked, best))
        for name, activation in ACTIVATIONS.items()
    }
    (name, _), right = max(others.items(), key=lambda one: int(one[1].sum()))
    other = float(right.float().mean())
    if other >= POOR and _is_clearly_better(right, with_relu):
        raise RunError(
            f"{file} was not trained with ReLU: with {name} between its layers it reads {100 * other:.1f} % of val"
            f" right, with ReLU {100 * float(with_relu.float().mean()):.1f} %.",
            LIBRARY,
        )
    if shares[best] < POOR:
        raise RunError(
            f"{file} reads only {100 * shares[best]:.1f} % of val right, however it is given pixels: something else"
            " than ReLU is between its layers, they are in another order, or it was trained on other images or labels.",
            LIBRARY,
        )
    if shares[asked] < POOR:
        cause = f"{file} reads {100 * shares[asked]:.1f} % of val right with {asked}, {100 * shares[best]:.1f} % with"
        raise RunError(f"{cause} {best}.", f"Give it {best}.")
    return shares, best if _is_clearly_better(measured[best], measured[asked]) else None
