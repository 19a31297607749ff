"""Small models for the tests of the library, some with an adapter whose B is not 0."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from lora_mnist.evaluation.results import Counts
from lora_mnist.lora import LoRAConfig, adapt, inject
from lora_mnist.training.model import MLP, logits_of

DIGIT = 3  # of which `labelled_by_a_network` has many
LAYERS = ("linear1", "linear2", "linear3")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def config(**changes):
    return LoRAConfig(**{"targets": LAYERS, "rank": 3, "alpha": 5.0, **changes})


def add(model, name, config, seed=0, std=0.1):
    """An adapter that does something."""
    updates = inject(model, name, config, generator(seed))
    for update in updates.values():
        nn.init.normal_(update.lora_B.data, std=std, generator=generator(seed + 1))
    return updates


def adapted(name="a", hidden=(12, 11), **changes):
    """An MLP with an adapter, and the plain MLP it came from."""
    torch.manual_seed(0)
    base = MLP(hidden)
    model = copy.deepcopy(base)
    add(model, name, config(**changes))
    return model.eval(), base


def by_hand(base, updates, scaling):
    """A copy of a plain model with W + scaling · B A in the place of every W that has an update."""
    model = copy.deepcopy(base)
    for path, update in updates.items():
        model.get_submodule(path).weight.data += scaling * update.lora_B.detach() @ update.lora_A.detach()
    return model


def adapted_layer(of_weight=torch.float32, **changes):
    """One layer (6 → 4) with an adapter that does something, and its update."""
    torch.manual_seed(0)
    layer = adapt(nn.Linear(6, 4).to(of_weight))
    update = layer.add("a", config(**changes), generator())
    nn.init.normal_(update.lora_B.data)
    return layer, update


def labelled_by_a_network(count, of_digit):
    """A network, random images, and what it takes them for; but the first `of_digit` are said to be of the digit."""
    torch.manual_seed(0)
    network = MLP((12,)).eval()
    images = torch.randint(256, (count, 28, 28), dtype=torch.uint8)
    labels = logits_of(network, images).argmax(1)
    labels[:of_digit] = DIGIT
    return network, images, labels


def counts_by_hand(logits, labels, digit):
    """Missed, false alarms and all errors."""
    wrong, taken = logits.argmax(1) != labels, logits.argmax(1) == digit
    missed, false_alarms = wrong & (labels == digit), wrong & taken
    return Counts(missed=int(missed.sum()), false_alarms=int(false_alarms.sum()), errors=int(wrong.sum()))


class Block(nn.Module):
    """Self-attention and a feed-forward block, with the names that language models use."""

    def __init__(self, width=24, heads=3):
        super().__init__()
        self.heads = heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, nn.Linear(width, width, bias=name == "o_proj"))
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        """(B, T, width) → the same."""
        batch, tokens, width = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.o_proj(mixed)
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Transformer(nn.Module):
    """Two blocks and a head; (B, T, width) → (B, T, classes)."""

    def __init__(self, width=24, classes=7):
        super().__init__()
        self.layers = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
