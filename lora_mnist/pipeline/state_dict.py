"""A file with a network that was trained elsewhere → its linear layers in their order; and back, laid out as it was."""

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, permutations
from pathlib import Path
from typing import Any, NoReturn

import torch

from lora_mnist.errors import RunError, UsageError, shown
from lora_mnist.files import read_regular
from lora_mnist.runs.schemas import Format, ImportedFile, ImportedTensor
from lora_mnist.training.model import MLP

LARGEST = 1 << 30  # bytes, of the file and of what it holds: a network of 268 million numbers
FORMATS: dict[str, Format] = {
    **{".pt": "torch", ".pth": "torch", ".bin": "torch", ".ckpt": "torch"},
    ".safetensors": "safetensors",
}
KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net")  # under which checkpoints hold it
DTYPES = ("float16", "bfloat16", "float32", "float64")
NAME = re.compile(r"(?:(.*)\.)?(weight|bias)")  # fc1.weight, module.net.2.bias, weight
MOST_SEARCHED = 9  # layers whose order is searched for: 362,880 orders at most

SAVE = "Save its weights alone: torch.save(model.state_dict(), FILE)."
LIBRARY = "What comes in is a chain of linear layers from 784 to 10; docs/library.md shows LoRA on any other network."


@dataclass(frozen=True)
class LayerTensors:
    """A layer: fp32 tensors by `weight` (out, in) and, if it has one, `bias` (out,), and their names in the file."""

    tensors: dict[str, torch.Tensor]
    names: dict[str, str]

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers it takes and gives."""
        outputs, inputs = self.tensors["weight"].shape
        return inputs, outputs

    def __str__(self) -> str:
        return f"`{self.names['weight']}` ({_shape(self.tensors['weight'])})"


def read_layers(path: Path) -> tuple[list[LayerTensors], ImportedFile]:
    """The linear layers, in their order, in what torch.save or safetensors wrote; and how that file is laid out.

    Nothing in the file is run. Raises RunError if it cannot be read, or holds anything but the layers of one network
    that takes 784 pixels and gives 10 logits.
    """
    if path.is_dir():
        raise RunError(f"{path} is a folder.", "Name the file in it that holds the weights.")
    try:
        content = read_regular(path, LARGEST)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.", "Name a file with the weights.") from error
    format = FORMATS.get(path.suffix.lower())
    if format is None:
        raise RunError(f"{path} does not end in {', '.join(FORMATS)}, the formats that are read.", SAVE)
    if not content:
        raise RunError(f"{path} is empty.", "Name a file with the weights.")
    found = _load(path, content, format)
    key = next((key for key in KEYS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), None)
    tensors = found if key is None else found[key]
    if not isinstance(tensors, Mapping) or not any(isinstance(one, torch.Tensor) for one in tensors.values()):
        what = f"a {type(found).__name__}"
        if isinstance(found, Mapping):
            what = f"only {', '.join(shown(one) for one in list(tensors)[:3]) or 'nothing'}"
        raise RunError(f"{path} holds no state dict, but {what}.", SAVE)
    layers = _layers_in(path, tensors)
    ours = {layer.names[kind]: f"linear{i}.{kind}" for i, layer in enumerate(layers, 1) for kind in layer.names}
    laid_out = tuple(ImportedTensor(name=one, tensor=ours[one], dtype=_dtype(tensors[one])) for one in tensors)
    sha256 = hashlib.sha256(content).hexdigest()
    return layers, ImportedFile(file=path.name, sha256=sha256, format=format, key=key, tensors=laid_out)


def _load(path: Path, content: bytes, format: Format) -> Any:
    if format == "torch":
        return _from_torch(path, content)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is no file of safetensors: {error}.", "Save it again.") from error
    # the format does not keep the order of layers, so names decide, with layer 10 after layer 9
    return {name: tensors[name] for name in sorted(tensors, key=_by_number)}


def _by_number(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _from_torch(path: Path, content: bytes) -> Any:
    try:
        is_zip = content.startswith(b"PK\x03\x04")  # by which torch tells it from its older format
        members = zipfile.ZipFile(io.BytesIO(content)).infolist() if is_zip else []
        if sum(member.file_size for member in members) > LARGEST:
            raise RunError(f"{path} holds more than {LARGEST:,} bytes when it is unpacked.", SAVE)
        if any(member.filename.endswith("/constants.pkl") for member in members):
            raise RunError(f"{path} is a TorchScript archive, whose code would have to run.", SAVE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a file's own torch stored otherwise
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except RunError:
        raise
    except Exception as error:  # damaged files make zipfile and torch raise errors of many kinds
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            cause = f"{path} holds {foreign[1]}, which is not a tensor, and loading that could run any code."
            raise RunError(cause, SAVE) from error
        raise RunError(f"{path} is no file of torch.save, or a damaged one.", SAVE) from error


def _layers_in(path: Path, tensors: Mapping[str, torch.Tensor]) -> list[LayerTensors]:
    """The order of the file is taken for that of the layers if they fit so, else the one order in which they do."""

    def refuse(what: str, way_out: str = LIBRARY) -> NoReturn:
        raise RunError(f"{path}: {what}.", way_out)

    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            refuse(f"{shown(name)} is of type {type(tensor).__name__}: no tensor that has a name", SAVE)
        if tensor.is_nested or tensor.is_meta or tensor.layout != torch.strided:
            refuse(f"`{name}` is no plain tensor", SAVE)
    if sum(one.numel() for one in tensors.values()) > LARGEST // 4:  # as a few bytes can claim to be
        refuse(f"its tensors have more than {LARGEST // 4:,} numbers")

    shapes = [one.shape for one in tensors.values() if one.dim() == 2]
    inputs, outputs = {shape[1] for shape in shapes}, {shape[0] for shape in shapes}
    parts: dict[str, LayerTensors] = {}
    for name, tensor in tensors.items():
        what = f"`{name}` ({_shape(tensor)})"
        if "lora_" in name:
            refuse(f"{what} is part of a LoRA adapter, not of a network", "Use it as --adapter FOLDER on its own base.")
        if tensor.dim() == 2 and tensor.shape[0] == 784 and 784 not in inputs:
            refuse(
                f"{what} is transposed, as TensorFlow, Keras and JAX keep a matrix",
                "Save its transpose, (outputs, inputs) as in torch, and likewise of every other weight.",
            )
        if tensor.dim() > 2:
            refuse(f"{what} is {'a convolution' if tensor.dim() == 4 else 'no matrix'}")
        match = NAME.fullmatch(name)
        if match is None or tensor.dim() != {"weight": 2, "bias": 1}[match[2]]:
            refuse(f"{what} is neither weight nor bias of a linear layer")
        if _dtype(tensor) not in DTYPES:
            refuse(f"{what} is {_dtype(tensor)}, not {', '.join(DTYPES[:-1])} or {DTYPES[-1]}", SAVE)
        if not tensor.numel():
            refuse(f"{what} is empty")
        values = tensor.detach().to(torch.float32).contiguous().clone()
        if not values.isfinite().all():
            refuse(
                f"{what} holds NaN, infinity, or more than float32 can", "Train it again with a lower learning rate."
            )
        layer = parts.setdefault(match[1] or "", LayerTensors({}, {}))
        layer.tensors[match[2]], layer.names[match[2]] = values, name
    for layer in parts.values():
        if "weight" not in layer.tensors:
            refuse(f"`{layer.names['bias']}` is a bias without a weight")
        if "bias" in layer.tensors and layer.tensors["bias"].shape != layer.tensors["weight"].shape[:1]:
            refuse(f"`{layer.names['bias']}` ({_shape(layer.tensors['bias'])}) is not the bias of {layer}")

    layers = list(parts.values())
    if _is_chain(layers):
        return layers
    orders = list(islice(filter(_is_chain, permutations(layers)), 2)) if len(layers) <= MOST_SEARCHED else []
    if not orders:
        refuse(_misfit(layers, inputs, outputs))
    if len(orders) > 1:
        first, second = (" → ".join(layer.names["weight"] for layer in order) for order in orders)
        refuse(f"its layers fit as {first} and as {second}", "Save them in their order, with torch.save.")
    return list(orders[0])


def _is_chain(layers: Sequence[LayerTensors]) -> bool:
    ends = (layers[0].sizes[0], layers[-1].sizes[1])
    return ends == (784, 10) and all(one.sizes[1] == other.sizes[0] for one, other in pairwise(layers))


def _misfit(layers: Sequence[LayerTensors], inputs: set[int], outputs: set[int]) -> str:
    """Why they do not chain, in the order of the file."""
    if 784 not in inputs:
        return f"{layers[0]} takes {layers[0].sizes[0]:,} numbers, not the 784 pixels of an image"
    if 10 not in outputs:
        return f"{layers[-1]} gives {layers[-1].sizes[1]:,} numbers, not one for each of 10 digits"
    for one, other in pairwise(layers):
        if one.sizes[1] != other.sizes[0]:
            return f"{other} takes {other.sizes[0]:,} numbers, but {one} before it gives {one.sizes[1]:,}"
    return f"{layers[0]} to {layers[-1]} are no chain from 784 to 10"


def _shape(tensor: torch.Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "one number"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def original_content(source: ImportedFile, network: MLP) -> bytes:
    """A file of `network`, laid out as the one that its base was imported from: names, order, dtypes, key, format.

    Raises UsageError if a weight is too large for its dtype there.
    """
    own = network.state_dict()
    tensors = {one.name: own[one.tensor].cpu().to(getattr(torch, one.dtype)).contiguous() for one in source.tensors}
    for one in source.tensors:
        if not tensors[one.name].isfinite().all():
            raise UsageError(f"A number of `{one.name}` is too large for {one.dtype}.", "Choose a smaller --strength.")
    if source.format == "safetensors":
        from safetensors.torch import save

        return save(tensors, {"format": "pt"})
    content = io.BytesIO()
    torch.save(tensors if source.key is None else {source.key: tensors}, content)
    return content.getvalue()


def tensors_in(source: ImportedFile, content: bytes) -> dict[str, torch.Tensor]:
    """What `original_content` made, read again: tensors by our names."""
    found = _load(Path(source.file), content, source.format)
    tensors = found if source.key is None else found[source.key]
    return {one.tensor: tensors[one.name] for one in source.tensors}
