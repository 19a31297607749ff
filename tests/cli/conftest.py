"""What the tests of the command line share: a stored fine-tuning, variations of it, and what a terminal shows."""

import io

import pytest
from rich.console import Console

from lora_mnist.evaluation.results import Counts, GuardDecision, TriedScale
from lora_mnist.pipeline import FinetuneResult
from lora_mnist.runs.run import Run

LARGEST = Counts(missed=1135, false_alarms=9999, errors=9999)


def printed(*renderables, width=80, **options) -> list[str]:
    """The lines on a terminal of so many columns."""
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    for renderable in renderables:
        console.print(renderable, crop=False)
    return console.file.getvalue().splitlines()


def joined(lines: list[str]) -> str:
    """One line, with single spaces."""
    return " ".join(" ".join(lines).split())


def words(*renderables) -> str:
    """What is printed, wherever its lines break."""
    return joined(printed(*renderables))


def changed(document, **changes):
    """The same with other values, `record__digit=4` for one further in."""
    for key, value in changes.items():
        first, _, rest = key.partition("__")
        value = changed(getattr(document, first), **{rest: value}) if rest else value
        document = document.model_copy(update={first: value})
    return document


@pytest.fixture(scope="session")
def tuned(finished_run) -> FinetuneResult:
    """The adapter of the finished run."""
    (adapter,) = Run(finished_run).adapters()
    return FinetuneResult(
        record=adapter.finetune, provenance=adapter.provenance, analysis=adapter.analysis, evaluation=adapter.evaluation
    )


@pytest.fixture(scope="session")
def refused(tuned) -> FinetuneResult:
    """An adapter that the guard did not let be kept."""
    tried = tuple(TriedScale(scale=scale, missed=0, false_alarms=0, errors=n) for scale, n in ((1.0, 12), (0.9, 11)))
    before = Counts(missed=3, false_alarms=4, errors=10)
    guard = GuardDecision(rule="errors", counted="errors", gain=0, before=before, tried=tried, scale=None)
    record = changed(tuned.record, name="digit4-r2", digit=4, guard=guard)
    return FinetuneResult(record=record, provenance=tuned.provenance)
