"""Models of transformers with random weights: this library against PEFT, and against the model without an adapter.

    python benchmarks/models.py [--rounds 5] [--threads 1] [--out DIR]

Llama with all linear layers adapted but the output's, rank 8, fp32; T5 with its `wo` adapted, whose weight's dtype T5
looks at twice a forward pass; the fast path of nn.TransformerEncoder in eval mode. Medians over the interleaved rounds
of two processes, in CPU time, which other work on the machine disturbs less; ratios within a round, with their
quartiles. `train` is forward, backward and fused Adam; `forward` has no gradients.
"""

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from timing import Times, finish, in_processes, interleaved, machine, median_ms, options
from torch import nn

from lora_mnist.datasets.mnist import import_torchvision
from lora_mnist.lora import LoRAConfig, inject
from lora_mnist.training.device import prepare_device

LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Batch = Mapping[str, torch.Tensor]


def llama(width: int) -> tuple[nn.Module, Batch, list[str]]:
    """Four blocks; 4 sequences of 64 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    inner = width * 43 // 16
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    ids = torch.randint(1000, (4, 64))
    return LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes)), {"input_ids": ids, "labels": ids}, LLAMA_TARGETS


def t5() -> tuple[nn.Module, Batch, list[str]]:
    """Three blocks each way of width 256; 4 sequences of 64 tokens."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes: dict[str, Any] = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 3, "num_heads": 4}
    sizes["decoder_start_token_id"] = 0
    ids = torch.randint(1000, (4, 64))
    model = T5ForConditionalGeneration(T5Config(vocab_size=1000, **sizes))
    return model, {"input_ids": ids, "labels": ids}, ["wo"]


def encoder() -> tuple[nn.Module, Batch, list[str]]:
    """Four layers of width 256, whose fast path reads the weights."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    return nn.TransformerEncoder(layer, 4), {"src": torch.randn(4, 64, 256)}, ["linear1", "linear2"]


MODELS: dict[str, Callable[[], tuple[nn.Module, Batch, list[str]]]] = {
    "Llama, width 64": partial(llama, 64),
    "Llama, width 256": partial(llama, 256),
    "T5, width 256": t5,
    "TransformerEncoder, width 256": encoder,
}


def trained(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """A training step."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def forward(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """A forward pass without gradients."""

    def call() -> object:
        with torch.no_grad():
            return model(**batch)

    return call


def measure(threads: int | None, rounds: int) -> dict[tuple[str, str], Times]:
    """Times by model and by what is done with it."""
    warnings.simplefilter("ignore")
    prepare_device("cpu", threads)
    import_torchvision()  # transformers imports it
    from peft import LoraConfig, get_peft_model

    found = {}
    for title, make in MODELS.items():
        torch.manual_seed(0)
        base, batch, targets = make()
        ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
        inject(ours, "a", LoRAConfig(targets, rank=8, alpha=16.0))
        nets = {"ours": ours, "PEFT": get_peft_model(theirs, LoraConfig(r=8, lora_alpha=16, target_modules=targets))}
        if make is not encoder:
            calls = {name: trained(net.train(), batch) for name, net in nets.items()}
            found[title, "train"] = interleaved(calls, rounds, 3, time.process_time)
        else:
            del nets["PEFT"]  # it does not take a call by name; and in this place its adapters are not computed
        nets["base"] = base
        calls = {name: forward(net.eval(), batch) for name, net in nets.items()}
        found[title, "forward"] = interleaved(calls, rounds, 5, time.process_time)
    return found


def compared(times: Times, to: str) -> str:
    """How many times as long ours takes as `to`, and between which figures half of the rounds lie."""
    if to not in times:
        return ""
    low, middle, high = statistics.quantiles(a / b for a, b in zip(times["ours"], times[to], strict=True))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__, rounds=5)
    about = machine(arguments.threads)
    about["torch"] += f", PEFT {version('peft')}, transformers {version('transformers')}"
    rows = []
    found = in_processes(measure, arguments.threads, arguments.rounds, count=2)
    for (model, work), times in found.items():
        own = {
            f"{name}, ms": f"{median_ms(times, name):.1f}" if name in times else "" for name in ("ours", "PEFT", "base")
        }
        rows.append({"model": model, "work": work, **own, "ours / PEFT": compared(times, "PEFT")})
        rows[-1]["ours / base"] = compared(times, "base")
    finish("models", rows, arguments.out, about)


if __name__ == "__main__":
    main()
