"""What a run's base and adapters come to: read from its JSON alone, without torch."""

from collections.abc import Sequence

from lora_mnist.evaluation.results import Counts
from lora_mnist.runs.artifact import Artifact
from lora_mnist.runs.moment import of_one_moment
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import Method
from lora_mnist.runs.sizes import SizeTable, mlp_layers, parse_ranks, parse_shape, size_table
from lora_mnist.settings.strict import Count, Digit, Document, Many


class AdapterLine(Document):
    """One adapter, or checkpoint with all weights trained, in short.

    Attributes:
        rank: None where all weights were trained, and `proof` likewise: there is none to be made.
        parameters: how many numbers were trained.
        before, after: on `test`.
        bytes: of the file that holds its weights.
        drawings: how many it was taught; None where it was taught none.
    """

    name: str
    method: Method
    digit: Digit
    rank: int | None
    parameters: Count
    on_top_of: Many[str]
    before: Counts
    after: Counts
    proof: bool | None
    bytes: Count
    drawings: Count | None = None


class Listing(Document):
    """Every adapter of a run, oldest first, then every checkpoint with all weights trained; and the run's `digest`."""

    run: str
    dataset: str
    base_fingerprint: str
    digest: str
    adapters: Many[AdapterLine]


def list_adapters(run: Run) -> Listing:
    """What each of them did on `test`.

    Raises:
        RunError: there is no base, or an adapter, a checkpoint or a file is missing or damaged.
    """
    return of_one_moment(run, _list)


def _list(run: Run) -> Listing:
    base = run.require_base().evaluation
    lines = tuple(lines_of(run))
    return Listing(
        run=str(run.path),
        dataset=base.dataset.name,
        base_fingerprint=base.base_fingerprint,
        digest=run.digest(),
        adapters=lines,
    )


def lines_of(run: Run) -> list[AdapterLine]:
    """The lines of `list_adapters`. Raises RunError as it does, and if one is missing."""
    run.require_complete()
    adapters = [run.require_adapter(name) for name in run.adapter_names()]
    return [_line(saved) for saved in (*adapters, *(run.require_checkpoint(s.name) for s in run.full_checkpoints()))]


def count_parameters(run: Run, ranks: str, shapes: Sequence[str] | None = None) -> SizeTable:
    """`size_table` of the network of `run`, or of layers without biases that have the given `shapes`.

    Raises:
        RunError: there is no base, and no shape was given.
        UsageError: the ranks are not `1,2,4`, or a shape is not `4096x4096`.
    """
    counts = parse_ranks(ranks)
    if shapes:
        return size_table({f"{i}": parse_shape(shape) for i, shape in enumerate(shapes)}, False, counts)
    run.require_base()
    return size_table(mlp_layers(run.record.settings.model.hidden), True, counts)


def _line(saved: Artifact) -> AdapterLine:
    record, test = saved.tuning, saved.analysis.splits["test"]
    return AdapterLine(
        name=saved.name,
        method=record.method,
        digit=record.digit,
        rank=record.rank,
        parameters=record.trained,
        on_top_of=record.on_top_of,
        before=test.before,
        after=test.after,
        proof=None if record.proof is None else record.proof.passed,
        bytes=saved.file(saved.weights).stat().st_size,
        drawings=record.price.count if record.price else None,
    )
