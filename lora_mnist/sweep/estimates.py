"""Means over seeds, and how sure they are. Imports no torch."""

import math
import statistics
from collections.abc import Iterable
from typing import Literal

from lora_mnist.evaluation.results import COUNTS
from lora_mnist.settings.strict import Count, Document

Metric = Literal["missed", "false_alarms", "errors"]
METRICS: tuple[Metric, ...] = ("missed", "false_alarms", "errors")
assert METRICS == COUNTS


class Estimate(Document):
    """A mean, half the width of its 95 % interval (Student's t over seeds), and of how many seeds it is.

    Attributes:
        half: None where there is but one seed.
    """

    mean: float
    half: float | None
    seeds: Count


def estimate_of(values: Iterable[tuple[int, float]]) -> Estimate:
    """Of values with their seeds: digits of one base are not independent of each other, so each seed is one mean."""
    means = list(by_seed(values).values())
    half = None
    if len(means) > 1:
        from scipy.special import stdtrit  # takes a while to import, and only answers ask

        half = float(stdtrit(len(means) - 1, 0.975)) * statistics.stdev(means) / math.sqrt(len(means))
    return Estimate(mean=statistics.mean(means), half=half, seeds=len(means))


def by_seed(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """The mean of each seed."""
    found: dict[int, list[float]] = {}
    for seed, value in values:
        found.setdefault(seed, []).append(value)
    return {seed: statistics.mean(own) for seed, own in found.items()}
