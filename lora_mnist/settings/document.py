"""What settings and stored documents have in common: frozen, strict, finite, and no key that nobody knows."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

T = TypeVar("T")

# made from tuples; read from lists, since neither TOML nor JSON knows tuples
Many = Annotated[tuple[T, ...], Strict(False)]
Some = Annotated[tuple[T, ...], Strict(False), Field(min_length=1)]


def _is_none(value: object) -> bool:
    return value is None


Maybe = Annotated[T | None, Field(exclude_if=_is_none)]  # not written at all where there is none
Digit = Annotated[int, Field(ge=0, le=9)]
Count = Annotated[int, Field(ge=0)]


class Document(BaseModel):
    """Base of all settings and of everything stored, returned or printed as JSON."""

    # strict and finite: by default pydantic takes True or "1" for a rank and infinity for a learning rate
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


RULES = {  # what pydantic says in Python's words, in TOML's and JSON's
    "tuple_type": "must be a list",
    "too_short": "must have no fewer entries than {min_length}",
    "too_long": "must have no more entries than {max_length}",
    "model_type": "must be a table",
    "missing": "is missing",
    "extra_forbidden": "is not known",
}


def first_fault(error: ValidationError) -> tuple[str, str, Any, str]:
    """The first thing that is wrong: its dotted key, pydantic's name for the fault, the value, the rule in words."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("<"))  # the tag of a union is no key
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must")
    ours = RULES.get(first["type"])
    return key, first["type"], first["input"], ours.format(**first.get("ctx", {})) if ours else rule
