"""Which image is seen in which step: int64 tables of shape (steps, batch), drawn once from a seeded generator.

Drawn on the CPU always, so that every device sees the same images in the same order.
"""

import torch

from lora_mnist.errors import UsageError


def epoch_batches(count: int, batch_size: int, epochs: int, generator: torch.Generator) -> torch.Tensor:
    """Every epoch is a fresh permutation of `count` images, cut into batches; a last, smaller one is left out.

    Returns int64 (epochs * (count // batch_size), batch_size), values in [0, count). Raises UsageError if one batch is
    more than all images.
    """
    per_epoch = count // batch_size
    if per_epoch == 0:
        cause = f"`pretrain.batch_size` (={batch_size}) is more than the {count} training images."
        raise UsageError(cause, "Choose a smaller --batch-size.")
    orders = [_permutation(count, generator)[: per_epoch * batch_size] for _ in range(epochs)]
    return torch.cat(orders).view(epochs * per_epoch, batch_size)


def mixed_batches(
    chosen: torch.Tensor,
    share: float,
    batch_size: int,
    steps: int,
    generator: torch.Generator,
    weights: torch.Tensor | None = None,
    setting: str = "focus",
) -> torch.Tensor:
    """Every batch holds round(share * batch_size) of the `chosen` images, those of a digit say; the rest are others.

    Without weights, either pool is gone through in random order without repetition, and in a new order once it is used
    up. With weights, every image is drawn from its pool with replacement, in proportion to its weight.

    Args:
        chosen: bool (N,), which of the training images.
        share: in (0, 1]; 1 is "only nines".
        weights: float64 (N,), none negative; a pool whose weights are all 0 is drawn from evenly.
        setting: the name of the share, for the error.

    Returns int64 (steps, batch_size), values in [0, N). Raises UsageError if the share rounds to no image at all.
    """
    count = round(share * batch_size)
    if count == 0:
        cause = f"`{setting}` (={share}) of a batch of {batch_size} is not even one image."
        raise UsageError(cause, f"Choose a larger {setting} or batch size.")
    columns = []
    for wanted, width in ((True, count), (False, batch_size - count)):
        if width == 0:
            continue
        pool = (chosen == wanted).nonzero().flatten()
        if weights is None:
            passes = -(-steps * width // len(pool))  # rounded up
            order = torch.cat([_permutation(len(pool), generator) for _ in range(passes)])[: steps * width]
        else:
            of_pool = weights[pool] if weights[pool].any() else torch.ones_like(weights[pool])
            order = torch.multinomial(of_pool, steps * width, replacement=True, generator=generator)
        columns.append(pool[order].view(steps, width))
    return torch.cat(columns, dim=1)  # (steps, count) and (steps, batch_size - count) -> (steps, batch_size)


def prior_offsets(labels: torch.Tensor, batches: torch.Tensor, strength: float) -> torch.Tensor:
    """What to add to the logits while training, so that a digit seen more often is not believed in more often.

    strength · log(share of the digit in the batches / its share of all images): logit adjustment (Menon et al. 2021,
    arXiv 2007.07314, section 4.2), with the shares of the training set in place of even ones.

    `labels` int64 (N,), `batches` int64 (steps, batch) indices into them → float32 (10,); 0 for a digit that is missing
    in either.
    """
    in_batches, in_all = (torch.bincount(part, minlength=10).double() for part in (labels[batches].flatten(), labels))
    ratio = (in_batches / in_batches.sum()) / (in_all / in_all.sum())
    offsets = strength * ratio.log()
    return torch.where(offsets.isfinite(), offsets, 0.0).float()


def _permutation(count: int, generator: torch.Generator) -> torch.Tensor:
    """The one that `DataLoader(shuffle=True)` takes from a generator in this state, so that a plain training script
    with the same seed sees the same batches."""
    torch.empty((), dtype=torch.int64).random_(generator=generator)  # DataLoader's seed for its workers
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))  # RandomSampler's for the permutation
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
