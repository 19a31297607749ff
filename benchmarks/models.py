"""Models of transformers with random weights: this library against PEFT, and against the model without an adapter.

    python benchmarks/models.py [--rounds 5] [--threads 1] [--out DIR]

Llama with all linear layers adapted but the output's, rank 8, fp32; T5 with its `wo` adapted, whose weight's dtype T5
looks at twice a forward pass; the fast path of nn.TransformerEncoder in eval mode. Medians over the interleaved rounds
of three processes; ratios within a round. `train` is forward, backward and fused Adam; `forward` has no gradients.
"""

import copy
import warnings
from collections.abc import Callable, Mapping

import torch
from timing import Times, finish, in_processes, interleaved, machine, median_ms, options, ratio
from torch import nn

from lora_mnist.datasets.mirrors import import_torchvision
from lora_mnist.lora import LoRAConfig, inject
from lora_mnist.training.device import prepare

LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Batch = Mapping[str, torch.Tensor]


def llama() -> tuple[nn.Module, Batch, list[str]]:
    """Four blocks of width 256; 4 sequences of 64 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    ids = torch.randint(1000, (4, 64))
    return LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes)), {"input_ids": ids, "labels": ids}, LLAMA_TARGETS


def t5() -> tuple[nn.Module, Batch, list[str]]:
    """Three blocks each way of width 256; 4 sequences of 64 tokens."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 3, "num_heads": 4}
    ids = torch.randint(1000, (4, 64))
    model = T5ForConditionalGeneration(T5Config(vocab_size=1000, decoder_start_token_id=0, **sizes))
    return model, {"input_ids": ids, "labels": ids}, ["wo"]


def encoder() -> tuple[nn.Module, Batch, list[str]]:
    """Four layers of width 256, whose fast path reads the weights."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    return nn.TransformerEncoder(layer, 4), {"src": torch.randn(4, 64, 256)}, ["linear1", "linear2"]


def trained(model: nn.Module, batch: Batch) -> Callable[[], None]:
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
    prepare("cpu", threads)
    import_torchvision()  # transformers imports it
    from peft import LoraConfig, get_peft_model

    found = {}
    for make in (llama, t5, encoder):
        torch.manual_seed(0)
        base, batch, targets = make()
        ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
        inject(ours, "a", LoRAConfig(targets, rank=8, alpha=16.0))
        nets = {"ours": ours, "peft": get_peft_model(theirs, LoraConfig(r=8, lora_alpha=16, target_modules=targets))}
        if make is not encoder:
            calls = {name: trained(net.train(), batch) for name, net in nets.items()}
            found[make.__name__, "train"] = interleaved(calls, rounds, 3)
        else:
            del nets["peft"]  # it does not take a call by name; and in this place its adapters are not computed
        nets["base"] = base
        calls = {name: forward(net.eval(), batch) for name, net in nets.items()}
        found[make.__name__, "forward"] = interleaved(calls, rounds, 5)
    return found


def main() -> None:
    """Measure and print."""
    arguments = options(__doc__, rounds=5)
    about = machine()
    rows = []
    found = in_processes(measure, arguments.threads, arguments.rounds, count=3)
    for (model, work), times in found.items():
        own = {f"{name}, ms": median_ms(times, name) if name in times else "" for name in ("ours", "peft", "base")}
        ratios = {f"ours / {name}": ratio(times, "ours", name) if name in times else "" for name in ("peft", "base")}
        rows.append({"model": model, "work": work, **own, **ratios})
    finish("models", rows, arguments.out, about)


if __name__ == "__main__":
    main()
