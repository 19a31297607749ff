"""Is a stored document what was derived again? And if not, in which field?"""

import math
from collections.abc import Iterator, Mapping

from lora_mnist.errors import shown
from lora_mnist.runs.told import is_told
from lora_mnist.settings.strict import Document

ROUNDING = 1e-6  # relative: another machine sums in another order


def first_difference(file: str, stored: object, derived: object) -> str | None:
    """A clause on the first field that is neither as derived nor told (see `runs.told`); None if there is none.

    Args:
        file: the document's name.
        stored, derived: documents, or tables as JSON has them.
    """
    for path, one, other in _differences("", _table(stored), _table(derived)):
        if not is_told(file, path):
            return f"{file}: `{path}` is {_said(one)}, but {_said(other)} follows from the rest"
    return None


class _Absent:
    """In place of a value that is not there."""


def _table(document: object) -> object:
    return document.model_dump(mode="json") if isinstance(document, Document) else document


def _differences(path: str, one: object, other: object) -> Iterator[tuple[str, object, object]]:
    """Every leaf that differs: its dotted path, and both values."""
    mine, theirs = _entries(one), _entries(other)
    if mine is None or theirs is None or type(one) is not type(other):
        if not _same(one, other):
            yield path, one, other
        return
    for key in {**mine, **theirs}:
        below = f"{path}.{key}" if path else key
        yield from _differences(below, mine.get(key, _Absent), theirs.get(key, _Absent))


def _entries(value: object) -> Mapping[str, object] | None:
    """Of a table or a list, by key; None of anything else."""
    if isinstance(value, Mapping):
        return value
    return {str(i): entry for i, entry in enumerate(value)} if isinstance(value, list) else None


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING**2)
    return type(one) is type(other) and one == other


def _said(value: object) -> str:
    return "not there" if value is _Absent else shown(value)
