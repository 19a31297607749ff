"""What a guard refused: remembered, so that `run` does not train it again only to refuse it again."""

from pydantic import ValidationError

from lora_mnist import SCHEMA
from lora_mnist.files import read_regular, to_json, write_file
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import FinetuneRecord, Provenance
from lora_mnist.settings.strict import Document, Many

REFUSED = "refused.json"  # at the top of a run


class Refusal(Document):
    """A training of which nothing was kept."""

    record: FinetuneRecord
    made: Provenance


class Refusals(Document):
    """All on the base with this fingerprint, the last of each name: refused.json."""

    schema_version: int
    base_fingerprint: str
    refused: Many[Refusal]


def refusals(run: Run, base_fingerprint: str) -> tuple[Refusal, ...]:
    """Those on this base. A file that cannot be read is none: what is lost is the time to train again."""
    try:
        found = Refusals.model_validate_json(read_regular(run.path / REFUSED))
    except (OSError, ValidationError):
        return ()
    return found.refused if (found.schema_version, found.base_fingerprint) == (SCHEMA, base_fingerprint) else ()


def remember_refusal(run: Run, base_fingerprint: str, refusal: Refusal) -> None:
    """Add `refusal`, in place of what there was of its name. Raises DiskError."""
    others = [one for one in refusals(run, base_fingerprint) if one.record.name != refusal.record.name]
    document = Refusals(schema_version=SCHEMA, base_fingerprint=base_fingerprint, refused=(*others, refusal))
    write_file(run.path / REFUSED, to_json(document.model_dump(mode="json")))
