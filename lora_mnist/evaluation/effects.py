"""What an adapter learnt: how large each layer's update is, in which directions, and what the digit owes to it."""

import torch

from lora_mnist.evaluation.predict import logits_of
from lora_mnist.evaluation.results import LayerEffect
from lora_mnist.lora.adapters import updates_of
from lora_mnist.lora.lowrank import factorise_product
from lora_mnist.lora.targets import adapted_layers
from lora_mnist.training.model import MLP

PICTURES = 8  # directions that are shown of the first layer


def layer_effects(adapted: MLP, name: str, images: torch.Tensor, digit: int) -> dict[str, LayerEffect]:
    """Every layer's update ΔW = scaling · B A, by the layer's name.

    Args:
        adapted: a network with adapter `name`, all on.
        images: uint8 (N, 28, 28), all of `digit`.
    """
    effects = {}
    for path, update in updates_of(adapted, name).items():
        weight = adapted_layers(adapted)[path].base.weight
        *_, kept = factorise_product(update.lora_B * update.scaling, update.lora_A, update.config.rank)
        norm = sum(value**2 for value in kept.singular_values) ** 0.5
        strength, update.strength = update.strength, 0.0
        missed = int((logits_of(adapted, images).argmax(1) != digit).sum())
        update.strength = strength
        effects[path] = LayerEffect(
            relative_norm=norm / float(weight.double().norm()),
            singular_values=kept.singular_values,
            missed_without=missed,
        )
    return effects


def first_directions(adapted: MLP, name: str) -> torch.Tensor:
    """What the first layer's update looks for in an image: the right singular vectors of its B A, strongest first.

    At rank 1 that is `lora_A` itself but for length and sign, which mean nothing; the pixel that counts most is
    positive.

    Returns:
        float32 (up to `PICTURES`, 28, 28); (0, 28, 28) if the first layer is not adapted.
    """
    update = updates_of(adapted, name).get("linear1")
    if update is None:
        return torch.empty(0, 28, 28)
    rank = min(PICTURES, update.config.rank)
    vectors, _, _ = factorise_product(update.lora_B * update.scaling, update.lora_A, rank)  # (rank, 784)
    peak = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))  # (rank, 1)
    return (vectors * peak.sign()).float().view(-1, 28, 28).cpu()
