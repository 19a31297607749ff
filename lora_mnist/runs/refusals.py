"""What a guard refused: remembered, so that `run` does not train it again only to refuse it again."""

from pydantic import ValidationError

from lora_mnist import SCHEMA
from lora_mnist.files import read_regular, to_json, write_file
from lora_mnist.runs.records import Making, TuningRecord
from lora_mnist.runs.rundir import Run
from lora_mnist.settings.strict import Document, Many

REFUSED = "refused.json"  # at the top of a run


class Refusal(Document):
    """A training of which nothing was kept."""

    record: TuningRecord
    made: Making


class Refusals(Document):
    """All on the base with this seal, the last of each name: refused.json."""

    schema_version: int
    base_seal: str
    refused: Many[Refusal]


def refusals(run: Run, base_seal: str) -> tuple[Refusal, ...]:
    """Those on this base. A file that cannot be read is none: what is lost is the time to train again."""
    try:
        found = Refusals.model_validate_json(read_regular(run.path / REFUSED))
    except (OSError, ValidationError):
        return ()
    return found.refused if (found.schema_version, found.base_seal) == (SCHEMA, base_seal) else ()


def remember_refusal(run: Run, base_seal: str, refusal: Refusal) -> None:
    """Add `refusal`, in place of what there was of its name. Raises DiskError."""
    others = [one for one in refusals(run, base_seal) if one.record.name != refusal.record.name]
    document = Refusals(schema_version=SCHEMA, base_seal=base_seal, refused=(*others, refusal))
    write_file(run.path / REFUSED, to_json(document.model_dump(mode="json")))
