"""A forward pass of the base, of the base with an adapter, and merged.

python benchmarks/inference.py [--device cuda] [--rounds 15] [--out DIR]
"""

import copy

import torch
from steps import HIDDEN, ours
from timing import finish, interleaved, machine, median_ms, options, ratio

from lora_mnist.lora import merge, updates_of
from lora_mnist.training.device import prepare_device
from lora_mnist.training.model import MLP


@torch.inference_mode()
def main() -> None:
    """Measure and print the table."""
    arguments = options(__doc__, rounds=15, device=True)
    device, about = prepare_device(arguments.device, arguments.threads), machine()
    base = MLP(HIDDEN).to(device).eval()
    rows = []
    for batch in (1, 10, 100, 1000):
        x = torch.randn(batch, 28, 28, device=device)
        for rank in (1, 16):
            adapted = ours(base, rank).eval()
            for update in updates_of(adapted, "a").values():
                update.lora_B.normal_()
            merged = copy.deepcopy(adapted)
            merge(merged)
            models = {"base": base, "adapter": adapted, "merged": merged}
            calls = {name: lambda model=model, x=x: model(x) for name, model in models.items()}
            times = interleaved(calls, arguments.rounds, max(3, 1000 // batch))
            rows.append(
                {
                    "batch": batch,
                    "rank": rank,
                    "base, ms": median_ms(times, "base"),
                    "adapter / base": ratio(times, "adapter", "base"),
                    "merged / base": ratio(times, "merged", "base"),
                }
            )
    finish("inference", rows, arguments.out, about)


if __name__ == "__main__":
    main()
