"""Which image is seen in which step: int64 tables of shape (steps, batch), drawn once from a seeded generator.

Drawn on the CPU always, so that every device sees the same images in the same order.
"""

import torch

from lora_mnist.errors import UsageError


def epoch_batches(count: int, batch_size: int, epochs: int, generator: torch.Generator) -> torch.Tensor:
    """Every epoch is a fresh permutation of `count` images, cut into batches; a last, smaller one is left out.

    Returns:
        int64 (epochs * (count // batch_size), batch_size), values in [0, count).

    Raises:
        UsageError: one batch is more than all images.
    """
    per_epoch = count // batch_size
    if per_epoch == 0:
        raise UsageError(
            f"`pretrain.batch_size` (={batch_size}) is more than the {count} training images.",
            "Choose a smaller --batch-size.",
        )
    orders = [_shuffled(count, generator)[: per_epoch * batch_size] for _ in range(epochs)]
    return torch.cat(orders).view(epochs * per_epoch, batch_size)


def focus_batches(
    labels: torch.Tensor,
    digit: int,
    share: tuple[float, int],
    steps: int,
    generator: torch.Generator,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """`mixed_batches` of which a share, the focus, shows one digit (1 is "only nines").

    Args:
        labels: int64 (N,), the digits of the training images.
        share: the focus, and the size of a batch.
    """
    return mixed_batches(labels == digit, ("focus", *share), steps, generator, weights)


def mixed_batches(
    chosen: torch.Tensor,
    share: tuple[str, float, int],
    steps: int,
    generator: torch.Generator,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Every batch holds round(share * batch_size) of the `chosen` images, the rest are others.

    Without weights either pool is gone through in random order without repetition, and again in a new order once it is
    used up. With weights every image is drawn from its pool anew, in proportion to its weight.

    Args:
        chosen: bool (N,), which of the training images.
        share: the name of the setting, its value in (0, 1], and the size of a batch.
        weights: float64 (N,), none negative; a pool whose weights are all 0 is drawn from evenly.

    Returns:
        int64 (steps, batch_size), values in [0, N).

    Raises:
        UsageError: the share rounds to no image at all.
    """
    setting, value, batch_size = share
    count = round(value * batch_size)
    if count == 0:
        raise UsageError(
            f"`{setting}` (={value}) of a batch of {batch_size} is not even one image.",
            f"Choose a larger {setting} or batch size.",
        )
    widths = {True: count, False: batch_size - count}
    pools = [((chosen == wanted).nonzero().flatten(), width) for wanted, width in widths.items() if width]
    if weights is None:
        parts = [_in_turn(pool, steps, width, generator) for pool, width in pools]
    else:
        parts = [_drawn(pool, weights[pool], steps, width, generator) for pool, width in pools]
    return torch.cat(parts, dim=1)


def prior_offsets(labels: torch.Tensor, batches: torch.Tensor, strength: float) -> torch.Tensor:
    """What to add to the logits while training, so that a digit seen more often is not believed in more often.

    strength · log(share of the digit in the batches / its share of all images): logit adjustment (Menon et al. 2021,
    arXiv 2007.07314, section 4.2), with the shares of the training set in place of even ones.

    Args:
        labels: int64 (N,).
        batches: int64 (steps, batch), indices into them.

    Returns:
        float32 (10,); 0 for a digit that is missing in either.
    """
    seen, there = (torch.bincount(part, minlength=10).double() for part in (labels[batches].flatten(), labels))
    ratio = (seen / seen.sum()) / (there / there.sum())
    offsets = strength * ratio.log()
    return torch.where(offsets.isfinite(), offsets, 0.0).float()


def _in_turn(pool: torch.Tensor, steps: int, width: int, generator: torch.Generator) -> torch.Tensor:
    rounds = -(-steps * width // len(pool))
    orders = [pool[_shuffled(len(pool), generator)] for _ in range(rounds)]
    return torch.cat([*orders, pool[:0]])[: steps * width].view(steps, width)


def _drawn(
    pool: torch.Tensor, weights: torch.Tensor, steps: int, width: int, generator: torch.Generator
) -> torch.Tensor:
    """Each anew, in proportion to its weight."""
    if not weights.any():
        weights = torch.ones_like(weights)
    return pool[torch.multinomial(weights, steps * width, replacement=True, generator=generator)].view(steps, width)


def _shuffled(count: int, generator: torch.Generator) -> torch.Tensor:
    """The permutation that `DataLoader(shuffle=True)` takes from a generator in this state, so that a plain training
    script with the same seed sees the same batches."""
    torch.empty((), dtype=torch.int64).random_(generator=generator)  # DataLoader's seed for its workers
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))  # RandomSampler's for the permutation
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
