"""Networks of one run or of several side by side, and two by two on the same test images. Nothing is trained or stored.

Everything comes from what the stages stored: counts from their documents, tests from the logits of every test image.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from lora_mnist.datasets.dataset import load
from lora_mnist.errors import RunError
from lora_mnist.evaluation.metrics import compare_split
from lora_mnist.evaluation.verdict import McNemarResult, mcnemar_test
from lora_mnist.runs.atomic import RESTORE
from lora_mnist.runs.listing import AdapterLine, adapter_lines
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import DatasetName
from lora_mnist.settings.config import Count, DataSettings, Digit, Document, Many, Maybe

_Stored = tuple[Path, dict[str, torch.Tensor]]  # the folder of a network, and its logits (N, 10) by split


class Network(Document):
    """A base, or what became of it."""

    number: Count  # from 1, in the order of the runs and, in each, from the base on
    run: str
    name: str  # of the adapter or checkpoint; `base`
    dataset: DatasetName
    data: Annotated[DataSettings, Field(exclude=True)]  # which of the images are `test`
    images: Count  # of `test`
    errors: Count
    adapter: Maybe[AdapterLine] = None  # what was trained and what it did; a base has none

    @property
    def test_images(self) -> tuple[object, ...]:
        """What is the same of two networks with the same `test`, which does not depend on how `train` is split."""
        halves = (self.data.val_share, self.data.split_seed) if self.data.val_from == "test" else ()
        return (self.dataset.sha256, *halves)


class PairOfNetworks(Document):
    """Two networks on the same test images; `fixed`: only the second gets them right, `broken`: only the first."""

    first: Count  # its number
    second: Count
    errors: McNemarResult  # of all images
    digit: Maybe[Digit] = None  # that both repair, or that one repairs and the other, a base, might have
    missed: Maybe[McNemarResult] = None  # of the images of that digit


class SideBySide(Document):
    """What was compared. Two networks whose test images differ make no pair."""

    networks: Many[Network]
    pairs: Many[PairOfNetworks]

    @property
    def datasets(self) -> dict[tuple[object, ...], list[Network]]:
        """The networks with the same test images, by these."""
        found: dict[tuple[object, ...], list[Network]] = {}
        for network in self.networks:
            found.setdefault(network.test_images, []).append(network)
        return found


def compare(runs: Sequence[Path], adapters: Sequence[str] = (), data: Path = Path("data")) -> SideBySide:
    """All networks of `runs`, or their adapters and checkpoints of the names in `adapters`, each with each.

    Args:
        data: where data sets lie; labels are read from there if there is a pair to test.

    Raises:
        RunError: a run has no base, a file is missing or damaged, or no run has an adapter of that name.
        DataError: the labels are wanted and cannot be read.
    """
    networks: dict[Network, _Stored] = {}
    names = []
    for run in map(Run, dict.fromkeys(runs)):
        base, lines = run.require_base(), adapter_lines(run)
        made = zip((*run.adapters(), *run.full_checkpoints()), lines, strict=True)
        for saved, line in ((base, None), *made):
            logits = saved.logits()  # read with the documents, as they may be replaced
            names += [saved.name] if line else []
            if adapters and not (line and saved.name in adapters):
                continue
            test = saved.evaluation.splits["test"]
            network = Network(
                number=len(networks) + 1,
                run=str(run.path),
                name=saved.name,
                dataset=saved.evaluation.dataset,
                data=run.record.settings.data,
                images=test.count,
                errors=test.errors,
                adapter=line,
            )
            networks[network] = saved.folder, logits
    if missing := [name for name in adapters if name not in names]:
        raise RunError(
            f"There is no adapter {missing[0]!r} in {' or '.join(map(str, runs))}.",
            f"There is {', '.join(dict.fromkeys(names)) or 'none yet'}.",
        )
    pairs = list[PairOfNetworks]()
    for same in dict.fromkeys(network.test_images for network in networks):
        pairs += _pairs({network: one for network, one in networks.items() if network.test_images == same}, data)
    return SideBySide(networks=tuple(networks), pairs=tuple(pairs))


def _pairs(networks: Mapping[Network, _Stored], data: Path) -> Iterator[PairOfNetworks]:
    """Of networks with the same test images."""
    if len(networks) < 2:
        return
    one = next(iter(networks))
    share, seed, val_from = one.data.val_share, one.data.split_seed, one.data.val_from
    dataset = load(one.dataset.name, data, share, seed, val_from=val_from)
    if dataset.sha256 != one.dataset.sha256:
        raise RunError(f"{one.run} was trained on other images of the same name.", "Leave it out.")
    labels = dataset.test.labels
    for folder, logits in networks.values():
        if logits["test"].shape != (len(labels), 10):
            raise RunError(f"{folder} has no logits for each of the {len(labels)} test images.", RESTORE)
    for (first, (_, before)), (second, (_, after)) in itertools.combinations(networks.items(), 2):
        digits = {network.adapter.digit for network in (first, second) if network.adapter}
        digit = digits.pop() if len(digits) == 1 else None  # None too where drawings were taught
        found = compare_split(before["test"], after["test"], labels, digit or 0).pairs
        errors, missed = mcnemar_test(found.errors), None if digit is None else mcnemar_test(found.missed)
        yield PairOfNetworks(first=first.number, second=second.number, errors=errors, digit=digit, missed=missed)
