"""A run → every number that its report shows, as one document. Reads what the stages stored, without torch."""

from lora_mnist import SCHEMA, __version__
from lora_mnist.errors import RunError
from lora_mnist.evaluation.results import SplitResult
from lora_mnist.report.document import BaseSection, CheckpointSection, DigitShare, Line, Report, Share
from lora_mnist.report.provenance import made_of, made_of_base
from lora_mnist.report.section import section_of
from lora_mnist.runs.listing import adapter_lines
from lora_mnist.runs.run import Run


def report_of(run: Run, normalised: bool = False) -> Report:
    """The document of report.json.

    Args:
        normalised: for a page with shares in its confusion matrices.

    Raises:
        RunError: there is no base, or a file is damaged or belongs to another base.
    """
    base, record = run.require_base().evaluation, run.record
    lines = adapter_lines(run)
    adapters, checkpoints = run.adapters(), run.full_checkpoints()
    for saved in (*adapters, *checkpoints):
        if saved.evaluation.base_fingerprint != base.base_fingerprint:
            raise RunError(f"{saved.name!r} was trained on another base.", f"Remove {saved.folder}, or train it again.")
    return Report(
        schema_version=SCHEMA,
        version=__version__,
        run_digest=run.digest(),
        normalised=normalised,
        dataset=record.dataset,
        base=_base(base.base_fingerprint, base.splits["test"]),
        adapters=tuple(section_of(run, saved) for saved in reversed(adapters)),
        checkpoints=tuple(
            CheckpointSection(name=saved.name, digit=saved.finetune.digit, provenance=made_of(saved))
            for saved in checkpoints
        ),
        side_by_side=tuple(Line(**dict(line), change=line.after.errors - line.before.errors) for line in lines),
        provenance=made_of_base(run),
    )


def _base(fingerprint: str, test: SplitResult) -> BaseSection:
    shares = [Share.of_images(wrong, images) for wrong, images in zip(test.wrong, test.images, strict=True)]
    return BaseSection(
        fingerprint=fingerprint,
        accuracy=Share.accuracy(test),
        errors=Share.of_images(test.errors, test.count),
        digits=tuple(DigitShare(digit=digit, **dict(share)) for digit, share in enumerate(shares)),
        confusion=test.confusion,
    )
