"""Networks of one run or of several side by side, and two by two on the same test images. Nothing is trained or stored.

Everything comes from what the stages stored: counts from their documents, tests from the logits of every test image.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_mnist.datasets.dataset import load
from lora_mnist.errors import RunError
from lora_mnist.evaluation import metrics
from lora_mnist.evaluation.verdict import Tested, tested
from lora_mnist.runs.artifact import Artifact
from lora_mnist.runs.atomic import RESTORE
from lora_mnist.runs.listing import AdapterLine, adapter_lines
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import DatasetName
from lora_mnist.settings.document import Count, Digit, Document, Many, Maybe


class Network(Document):
    """A base, or what became of it.

    Attributes:
        number: from 1, in the order of the runs and, in each, from the base on.
        name: of the adapter or checkpoint; `base`.
        images, errors: of `test`, and how many of them are wrong.
        adapter: what was trained and what it did; a base has none.
    """

    number: Count
    run: str
    name: str
    dataset: DatasetName
    images: Count
    errors: Count
    adapter: Maybe[AdapterLine] = None

    @property
    def digit(self) -> int | None:
        """The digit that was repaired."""
        return self.adapter.digit if self.adapter else None


class PairOfNetworks(Document):
    """Two networks on the same test images: `fixed` are those that only the second gets right, `broken` those that
    only the first does, and `p` is McNemar's.

    Attributes:
        first, second: their numbers.
        errors: of all images.
        digit: the one that both repair, or that one repairs and the other, a base, might have; with `missed`, of its
            images.
    """

    first: Count
    second: Count
    errors: Tested
    digit: Maybe[Digit] = None
    missed: Maybe[Tested] = None


class SideBySide(Document):
    """What was compared. Two networks whose test images differ make no pair."""

    networks: Many[Network]
    pairs: Many[PairOfNetworks]

    @property
    def datasets(self) -> dict[str, list[Network]]:
        """The networks of each data set, by its SHA-256."""
        found: dict[str, list[Network]] = {}
        for network in self.networks:
            found.setdefault(network.dataset.sha256, []).append(network)
        return found


@dataclass(frozen=True)
class _Stored:
    """A network in its run.

    Attributes:
        logits: fp32 (N, 10) of `test`, if there are any; read with its documents, as they may be replaced.
        line: what an adapter or checkpoint did.
    """

    run: Run
    saved: Artifact
    logits: torch.Tensor | None
    line: AdapterLine | None = None


def compare(runs: Sequence[Path], adapters: Sequence[str] = (), data: Path = Path("data")) -> SideBySide:
    """All networks of `runs`, or their adapters and checkpoints of the names in `adapters`, each with each.

    Args:
        data: where data sets lie; labels are read from there if there is a pair to test.

    Raises:
        RunError: a run has no base, a file is missing or damaged, or no run has an adapter of that name.
        DataError: the labels are wanted and cannot be read.
    """
    there = [one for path in dict.fromkeys(runs) for one in _stored(Run(path))]
    names = {one.saved.name: one for one in there if one.line}
    if missing := [name for name in adapters if name not in names]:
        raise RunError(
            f"There is no adapter {missing[0]!r} in {' or '.join(map(str, runs))}.",
            f"There is {', '.join(names) or 'none yet'}.",
        )
    chosen = [one for one in there if not adapters or (one.line and one.saved.name in adapters)]
    networks = tuple(_network(number, one) for number, one in enumerate(chosen, 1))
    pairs = []
    for sha256 in dict.fromkeys(one.dataset.sha256 for one in networks):
        same = {one: chosen[one.number - 1] for one in networks if one.dataset.sha256 == sha256}
        pairs += _pairs(same, data)
    return SideBySide(networks=networks, pairs=tuple(pairs))


def _stored(run: Run) -> list[_Stored]:
    """The base, adapters, and checkpoints with all weights trained."""
    base, lines = run.require_base(), adapter_lines(run)
    provenance = (*run.adapters(), *run.full_checkpoints())
    there = [(base, None), *zip(provenance, lines, strict=True)]
    return [_Stored(run, saved, saved.logits().get("test"), line) for saved, line in there]


def _network(number: int, one: _Stored) -> Network:
    test = one.saved.evaluation.splits["test"]
    return Network(
        number=number,
        run=str(one.run.path),
        name=one.saved.name,
        dataset=one.saved.evaluation.dataset,
        images=test.count,
        errors=test.errors,
        adapter=one.line,
    )


def _pairs(networks: Mapping[Network, _Stored], data: Path) -> list[PairOfNetworks]:
    """Of networks with the same test images."""
    if len(networks) < 2:
        return []
    labels = _labels(next(iter(networks)), data)
    logits = {network.number: _logits(one, labels) for network, one in networks.items()}
    return [_pair(first, second, logits, labels) for first, second in itertools.combinations(networks, 2)]


def _pair(first: Network, second: Network, logits: Mapping[int, torch.Tensor], labels: torch.Tensor) -> PairOfNetworks:
    digits = {network.digit for network in (first, second) if network.adapter}
    digit = next(iter(digits)) if len(digits) == 1 else None
    before, after = ({"test": logits[network.number]} for network in (first, second))
    pairs = metrics.compare(before, after, {"test": labels}, digit or 0)["test"].pairs
    return PairOfNetworks(
        first=first.number,
        second=second.number,
        errors=tested(pairs.errors),
        digit=digit,
        missed=None if digit is None else tested(pairs.missed),
    )


def _labels(network: Network, data: Path) -> torch.Tensor:
    """int64 (N,) of `test`, which is the same however the training images are split."""
    dataset = load(network.dataset.name, data, val_share=0, split_seed=0)
    if dataset.sha256 != network.dataset.sha256:
        raise RunError(f"{network.run} was trained on other images of the same name.", "Leave it out.")
    return dataset.test.labels


def _logits(one: _Stored, labels: torch.Tensor) -> torch.Tensor:
    if one.logits is None or one.logits.shape != (len(labels), 10):
        raise RunError(f"{one.saved.folder} has no logits for each of the {len(labels)} test images.", RESTORE)
    return one.logits
