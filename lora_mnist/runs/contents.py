"""What a run has that is finished, by its place: contents.json. So what goes missing as a whole is missed.

A place is listed after its folder has been put there, and taken from the list before its folder is removed. So a
command that is killed in between leaves a folder that is not listed, which counts all the same, and the next command
that writes lists it; it never leaves a listed place without its folder. A run without a list has what is there.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from lora_mnist.errors import AlteredError
from lora_mnist.files import WAY_OUT, read_json, to_json, write_file
from lora_mnist.settings.strict import Document, Many, first_fault

CONTENTS = "contents.json"

Place = Annotated[str, Field(pattern=r"^(adapters|checkpoints)/[^/]+$")]


class Contents(Document):
    """The places of adapters and checkpoints below the run, in alphabetical order."""

    finished: Many[Place]


def read_contents(run: Path) -> tuple[str, ...]:
    """The listed places.

    Raises:
        RunError: the list cannot be read.
        AlteredError: it is not one.
    """
    path = run / CONTENTS
    if not path.exists():
        return ()
    try:
        return Contents.model_validate(read_json(path)).finished
    except ValidationError as error:
        raise AlteredError(f"{path} is damaged: `{first_fault(error)[0]}`.", WAY_OUT) from error


def write_contents(run: Path, places: Iterable[str]) -> None:
    """Replace the list. Raises DiskError."""
    write_file(run / CONTENTS, to_json(Contents(finished=tuple(sorted(places))).model_dump(mode="json")))
