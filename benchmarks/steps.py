"""One training step: this library, its peers, and the floor that the matrix products alone set.

    python benchmarks/steps.py [--device cuda] [--rounds 3] [--plain] [--out DIR]

Every contestant sees the same prepared batches; a step is forward pass, cross-entropy, backward pass and a fused Adam.
The floor of fine-tuning are three forward and two backward products into preallocated outputs; that of pretraining adds
the three products of the weights' gradients and one fused Adam pass. Medians over the interleaved rounds of five
processes. All that take their layers from the base, as PEFT does, take its `Linear`, which is ours; with `--plain` that
is torch's `nn.Linear`, as in other people's models.
"""

import copy
from collections.abc import Callable

import torch
from loralib import Linear as LoralibLinear
from loralib import mark_only_lora_as_trainable
from timing import Times, finish, in_processes, interleaved, machine, median_ms, options, ratio
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.lora import LoRAConfig, inject
from lora_mnist.training.device import prepare
from lora_mnist.training.loop import Adam
from lora_mnist.training.model import MLP

HIDDEN = (1000, 2000)
LAYERS = ("linear1", "linear2", "linear3")


class Parametrization(nn.Module):
    """W → W + scaling · B A: the form of the classic demonstration."""

    def __init__(self, out_features: int, in_features: int, rank: int, alpha: float):
        super().__init__()
        self.lora_A = nn.Parameter(torch.randn(rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank))
        self.scaling = alpha / rank

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """(out, in) → (out, in)."""
        return weight + (self.lora_B @ self.lora_A).view(weight.shape) * self.scaling


def ours(base: MLP, rank: int) -> nn.Module:
    """This library."""
    model = copy.deepcopy(base)
    inject(model, "a", LoRAConfig(LAYERS, rank=rank, alpha=float(rank)))
    return model


def peft(base: MLP, rank: int) -> nn.Module:
    """Hugging Face's."""
    import_torchvision()  # PEFT imports transformers, which imports torchvision
    from peft import LoraConfig, get_peft_model

    return get_peft_model(copy.deepcopy(base), LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LAYERS)))


def loralib(base: MLP, rank: int) -> nn.Module:
    """The original implementation."""
    model = copy.deepcopy(base)
    for name in LAYERS:
        layer = getattr(model, name)
        replacement = LoralibLinear(layer.in_features, layer.out_features, r=rank, lora_alpha=rank)
        replacement.load_state_dict(layer.state_dict(), strict=False)
        setattr(model, name, replacement.to(layer.weight.device))
    mark_only_lora_as_trainable(model)
    return model


def parametrized(base: MLP, rank: int) -> nn.Module:
    """torch.nn.utils.parametrize."""
    model = copy.deepcopy(base)
    for name in LAYERS:
        layer = getattr(model, name)
        update = Parametrization(layer.out_features, layer.in_features, rank, float(rank)).to(layer.weight.device)
        parametrize.register_parametrization(layer, "weight", update)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def full(base: MLP, rank: int) -> nn.Module:
    """All weights."""
    return copy.deepcopy(base).requires_grad_(True)


def stepper(model: nn.Module, x: torch.Tensor, y: torch.Tensor, own: bool) -> Callable[[], None]:
    """A training step; with our optimizer, or with the class of torch that everybody takes."""
    model.train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if own:
        optimizer = Adam(weights)

        def step() -> None:
            F.cross_entropy(model(x), y).backward()
            optimizer.step(1e-4)
    else:
        theirs = torch.optim.Adam(weights, lr=1e-4, fused=True)

        def step() -> None:
            theirs.zero_grad()
            F.cross_entropy(model(x), y).backward()
            theirs.step()

    return step


def floor(base: MLP, batch: int, everything: bool) -> Callable[[], None]:
    """The matrix products of a step into preallocated outputs; with `everything`, weight gradients and Adam too."""
    weights = [layer.weight.detach().clone() for layer in base.children()]
    device = weights[0].device
    inputs = [torch.randn(batch, weight.shape[1], device=device) for weight in weights]
    outputs = [torch.randn(batch, weight.shape[0], device=device) for weight in weights]
    results = [torch.empty_like(output) for output in outputs]
    backwards = [torch.empty_like(one) for one in inputs]
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def step() -> None:
        with torch.no_grad():
            for x, weight, result in zip(inputs, weights, results, strict=True):
                torch.mm(x, weight.t(), out=result)
            for gradient, weight, back in list(zip(outputs, weights, backwards, strict=True))[:0:-1]:
                torch.mm(gradient, weight, out=back)
            if everything:
                for gradient, x, parameter in zip(outputs, inputs, parameters, strict=True):
                    torch.mm(gradient.t(), x, out=parameter.grad)
                optimizer.step()

    return step


def base_of(plain: bool) -> MLP:
    """The network that all start from."""
    base = MLP(HIDDEN)
    for name in LAYERS if plain else ():
        getattr(base, name).__class__ = nn.Linear
    return base


def measure(device: str, threads: int | None, rounds: int, plain: bool) -> dict[tuple[int, int | None], Times]:
    """Every contestant's times by batch and rank; rank None is pretraining."""
    place = prepare(device, threads)
    torch.manual_seed(0)
    base = base_of(plain).to(place)
    peers = {"ours": ours, "peft": peft, "loralib": loralib, "parametrize": parametrized, "full": full}
    found = {}
    for batch in (10, 64, 256):
        x, y = torch.randn(batch, 28, 28, device=place), torch.randint(10, (batch,), device=place)
        repeats = max(5, 400 // batch)
        for rank in (1, 8):
            steps = {name: stepper(make(base, rank), x, y, own=name == "ours") for name, make in peers.items()}
            found[batch, rank] = interleaved({"floor": floor(base, batch, False), **steps}, rounds, repeats)
        steps = {"ours": stepper(full(base, 0), x, y, True), "torch.optim": stepper(full(base, 0), x, y, False)}
        found[batch, None] = interleaved({"floor": floor(base, batch, True), **steps}, rounds, repeats)
    return found


def main() -> None:
    """Measure and print both tables."""
    arguments = options(__doc__, rounds=3, device=True, plain=True)
    about = machine(arguments.threads)
    found = in_processes(measure, arguments.device, arguments.threads, arguments.rounds, arguments.plain)
    rows = {key: _row({"batch": key[0]} | ({"rank": key[1]} if key[1] else {}), times) for key, times in found.items()}
    kind = "-plain" if arguments.plain else ""
    finish(f"fine-tuning-step{kind}", [row for (_, rank), row in rows.items() if rank], arguments.out, about)
    finish(f"pretraining-step{kind}", [row for (_, rank), row in rows.items() if not rank], arguments.out, about)


def _row(of: dict, times: dict) -> dict:
    """Milliseconds of all, ours relative to the floor, and everybody else relative to ours."""
    own = {f"{name}, ms": median_ms(times, name) for name in times}
    others = {f"{name} / ours": ratio(times, name, "ours") for name in times if name not in ("floor", "ours")}
    return {**of, **own, "ours / floor": ratio(times, "ours", "floor"), **others}


if __name__ == "__main__":
    main()
