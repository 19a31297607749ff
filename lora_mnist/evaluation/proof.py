"""The proof that an adapter left its base alone and is what it claims to be.

frozen  every byte of every base tensor is as before
off     with the adapter off, the logits are the base's, bit for bit
on      with it on, the weights are W + scaling · B A: bit-equal to that formula, and the factored logits agree with
        the plain network of those weights to 1e-5 of the largest
"""

import copy
from collections.abc import Iterable, Mapping

import torch

from lora_mnist.evaluation.results import FrozenClaim, OffClaim, OnClaim, Proof
from lora_mnist.lora.fingerprint import Fingerprint, changed_bytes, compute_fingerprint, first_difference
from lora_mnist.lora.model import adapted_layers, adapter_names, base_tensors, disabled, updates_of
from lora_mnist.training.model import MLP, logits_of

# of the largest logit; fp32 sums of a thousand products in another order differ by less than 1e-6 here
TOLERANCE = 1e-5


def prove(
    base: MLP,
    images: Mapping[str, torch.Tensor],
    stored: Mapping[str, torch.Tensor],
    fingerprint: Fingerprint,
    adapted: MLP,
) -> tuple[Proof, dict[str, torch.Tensor]]:
    """Check all three claims for the adapters in `adapted`: one, or several on top of each other.

    Args:
        base: the plain network, from its file.
        images: uint8 (N, 28, 28) by split.
        stored: its logits (N, 10) on them, as they were stored.
        fingerprint: of the base's file, so that a base changed together with `adapted` is noticed too.
        adapted: the base with the adapters, at strength 1.

    Returns:
        What was found; and the adapted model's logits (N, 10) by split.
    """
    with disabled(adapted):
        off = {split: logits_of(adapted, batch) for split, batch in images.items()}
    # Another processor or number of threads sums in another order, so stored logits may differ in their last bits. Only
    # then is the base run.
    as_stored = all(split in stored and torch.equal(_bits(stored[split]), _bits(off[split])) for split in off)
    plain = off if as_stored else {split: logits_of(base, batch) for split, batch in images.items()}
    unequal = sum(int((_bits(plain[split]) != _bits(off[split])).any(1).sum()) for split in off)
    is_off = OffClaim(passed=unequal == 0, images=sum(map(len, off.values())), images_that_differ=unequal)

    on = {split: logits_of(adapted, batch) for split, batch in images.items()}
    merged, wrong_layers = _by_formula(base, adapted)
    difference = largest_of(on[split] - logits_of(merged, batch) for split, batch in images.items())
    largest = largest_of(on.values())
    is_on = OnClaim(
        passed=not wrong_layers and difference <= TOLERANCE * largest,  # nor if it is NaN
        layers_off_the_formula=tuple(wrong_layers),
        largest_difference=difference,
        largest_logit=largest,
    )

    before, after = dict(base.state_dict()), base_tensors(adapted)
    changed, now = changed_bytes(before, after), compute_fingerprint(after)
    frozen = FrozenClaim(
        passed=not changed and now == fingerprint,
        tensors=len(before),
        bytes=sum(tensor.nbytes for tensor in before.values()),
        changed_bytes=changed,
        first_difference=first_difference(fingerprint, now),
        fingerprint=fingerprint.sha256,
    )
    passed = frozen.passed and is_off.passed and is_on.passed
    return Proof(passed=passed, frozen=frozen, off=is_off, on=is_on), on


def largest_of(parts: Iterable[torch.Tensor]) -> float:
    """The largest size of a number in any of them; NaN if there is one, which Python's `max` would pass over."""
    return float(torch.stack([part.abs().max() for part in parts]).max())


def failures(proof: Proof) -> list[str]:
    """What `prove` found wrong, a clause each."""
    frozen, off, on = proof.frozen, proof.off, proof.on
    clauses = [f"base tensor {name} changed" for name in frozen.changed_bytes]
    if not frozen.passed and not clauses:
        clauses = [f"base tensor {frozen.first_difference} is not the recorded one"]
    if not off.passed:
        clauses.append(f"switched off, {off.images_that_differ} of {off.images} images have other logits")
    clauses += [f"the weight of {layer} is not W + scaling · B A" for layer in on.layers_off_the_formula]
    if not on.passed and not on.layers_off_the_formula:
        clauses.append(
            f"its logits differ by {on.largest_difference:.2g} from those of W + scaling · B A"
            f" (at most {TOLERANCE:g} of {on.largest_logit:.3g} is rounding)"
        )
    return clauses


@torch.no_grad()
def _by_formula(base: MLP, adapted: MLP) -> tuple[MLP, list[str]]:
    """A plain copy of `base` with W + scaling · B A written out; and the layers whose merged weight is not that."""
    weights: dict[str, torch.Tensor] = {}
    for name in adapter_names(adapted):
        for path, update in updates_of(adapted, name).items():
            weight = weights.get(path, base.get_parameter(f"{path}.weight"))
            product = update.lora_B @ update.lora_A  # (out, rank) @ (rank, in) -> (out, in)
            weights[path] = weight + update.config.scaling * product
    merged, layers = copy.deepcopy(base), adapted_layers(adapted)
    for path, weight in weights.items():
        merged.get_parameter(f"{path}.weight").copy_(weight)
    return merged, [path for path, weight in weights.items() if not torch.equal(weight, layers[path].merged_weight())]


def _bits(logits: torch.Tensor) -> torch.Tensor:
    """To compare them as bits, because as numbers 0.0 and -0.0 are equal."""
    return logits.view(torch.int32)
