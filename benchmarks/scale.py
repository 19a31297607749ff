"""How a fine-tuning step grows with the hidden size and with the rank.

python benchmarks/scale.py [--device cuda] [--rounds 5] [--out DIR]
"""

import torch
from steps import full, ours, stepper
from timing import finish, interleaved, machine, median_ms, options, ratio

from lora_mnist.training.device import prepare_device
from lora_mnist.training.model import MLP

BATCH = 64


def main() -> None:
    """Measure and print the table."""
    arguments = options(__doc__, rounds=5, device=True)
    device, about = prepare_device(arguments.device, arguments.threads), machine()
    rows = []
    x, y = torch.randn(BATCH, 28, 28, device=device), torch.randint(10, (BATCH,), device=device)
    for hidden in (512, 1024, 2048, 4096, 8192):
        base = MLP((hidden, hidden)).to(device)
        ranks = [1, 4, 16, 64, 256]
        steps = {f"rank {rank}": stepper(ours(base, rank), x, y, True) for rank in ranks}
        steps["all weights"] = stepper(full(base, 0), x, y, True)
        times = interleaved(steps, arguments.rounds, max(1, 8192 // hidden // 2))
        row = {"hidden": f"{hidden} x {hidden}", "rank 1, ms": median_ms(times, "rank 1")}
        rows.append(row | {f"{name} / rank 1": ratio(times, name, "rank 1") for name in steps if name != "rank 1"})
    finish("scale", rows, arguments.out, about)


if __name__ == "__main__":
    main()
