"""One training step: this library, its peers, and the floor that the matrix products alone set.

    python benchmarks/steps.py [--device cuda] [--threads 1] [--rounds 3] [--out DIR]

Every contestant sees the same prepared batches and has the same optimizer; a step is forward pass, cross-entropy,
backward pass and a fused Adam. The floor of fine-tuning are three forward and two backward products into preallocated
outputs; that of pretraining adds the three products of the weights' gradients and one fused Adam pass. On a CPU it is
CPU time, which other work on the machine disturbs less. Medians over the interleaved rounds of five processes.
"""

import copy
import time
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
from lora_mnist.training.device import prepare_device
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


class HandWritten(nn.Module):
    """LoRA as one writes it in six lines."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base, self.scaling = base.requires_grad_(False), 1.0
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features, device=base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in) → (N, out)."""
        return self.base(x) + (x @ self.lora_A.T) @ self.lora_B.T * self.scaling


def hand_written(base: MLP, rank: int) -> nn.Module:
    """That layer."""
    model = copy.deepcopy(base)
    for name in LAYERS:
        setattr(model, name, HandWritten(getattr(model, name), rank))
    return model


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
    weights = [base.get_parameter(f"{name}.weight").detach().clone() for name in LAYERS]
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


def measure(device: str, threads: int | None, rounds: int) -> dict[tuple[int, int | None], Times]:
    """Every contestant's times by batch and rank; rank None is pretraining."""
    place = prepare_device(device, threads)
    torch.manual_seed(0)
    base, clock = MLP(HIDDEN).to(place), time.process_time if place.type == "cpu" else time.perf_counter
    peers = {"ours": ours, "hand-written": hand_written, "peft": peft, "loralib": loralib}
    peers |= {"parametrize": parametrized, "full": full}
    found: dict[tuple[int, int | None], Times] = {}
    for batch in (10, 64, 128, 256):
        x, y = torch.randn(batch, 28, 28, device=place), torch.randint(10, (batch,), device=place)
        repeats = max(5, 400 // batch)
        for rank in (1, 8, 32):
            steps = {name: stepper(make(base, rank), x, y, own=True) for name, make in peers.items()}
            found[batch, rank] = interleaved({"floor": floor(base, batch, False), **steps}, rounds, repeats, clock)
        steps = {"ours": stepper(full(base, 0), x, y, True), "torch.optim": stepper(full(base, 0), x, y, False)}
        found[batch, None] = interleaved({"floor": floor(base, batch, True), **steps}, rounds, repeats, clock)
    return found


def main() -> None:
    """Measure and print both tables."""
    arguments = options(__doc__, rounds=3, device=True)
    about = machine(arguments.threads)
    found = in_processes(measure, arguments.device, arguments.threads, arguments.rounds)
    rows = {key: _row({"batch": key[0]} | ({"rank": key[1]} if key[1] else {}), times) for key, times in found.items()}
    finish("fine-tuning-step", [row for (_, rank), row in rows.items() if rank], arguments.out, about)
    finish("pretraining-step", [row for (_, rank), row in rows.items() if not rank], arguments.out, about)


def _row(of: dict, times: dict) -> dict:
    """Milliseconds of all, ours relative to the floor, and everybody else relative to ours."""
    own = {f"{name}, ms": median_ms(times, name) for name in times}
    others = {f"{name} / ours": ratio(times, name, "ours") for name in times if name not in ("floor", "ours")}
    return {**of, **own, "ours / floor": ratio(times, "ours", "floor"), **others}


if __name__ == "__main__":
    main()
