"""The errors that a user can cause, each with its exit code.

Every message is two sentences: the cause with the value received, and the way out.
"""

import re
from collections.abc import Iterable, Sequence

QUOTED = 200  # characters that an error quotes of a value, a path, or what a server sent
LONGEST = 1000  # characters of a sentence, whatever it quotes


def shown(value: object) -> str:
    """A value as an error quotes it: as Python writes it, shortened."""
    return shortened(repr(value), QUOTED)


def shortened(text: str, limit: int) -> str:
    """`text` without its middle if it is longer than `limit`; how it ends says what it is, as of a path."""
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[len(text) - limit // 2 + 1 :]}"


def sentence(text: str) -> str:
    """`text` fit for one line of a terminal: words and the whole of it shortened, and what moves a cursor escaped."""
    words = re.sub(rf"\S{{{QUOTED + 1},}}", lambda word: shortened(word[0], QUOTED), shortened(text, 100 * LONGEST))
    text = shortened(words, LONGEST)
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The question that a way out begins with, if one of the `known` is spelled like `word`; else nothing."""
    import difflib

    close = difflib.get_close_matches(word, list(known), 1)
    return f"Did you mean {close[0]}?" if close else ""


def listed(names: Sequence[object]) -> str:
    """As in a sentence: 1, 2 and 3."""
    *first, last = [*map(str, names)] or [""]
    return f"{', '.join(first)} and {last}" if first else last


NOTHING_KEPT = 7  # exit code of a training whose adapter met its guard at no scale: no error, and nothing to use


class LoraMnistError(Exception):
    """Base of all errors a user can cause. `exit_code` is what the command line returns."""

    exit_code = 1

    def __init__(self, cause: str, way_out: str):
        cause, way_out = sentence(cause), sentence(way_out)
        super().__init__(cause, way_out)  # what pickle makes it from again, on its way out of another process
        self.cause = cause
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.cause} {self.way_out}"


class UsageError(LoraMnistError):
    """A setting or option that is wrong by itself, or contradicts the run."""

    exit_code = 2


class DataError(LoraMnistError):
    """A data set that is missing, unreachable or not what it should be."""

    exit_code = 3


class RunError(LoraMnistError):
    """A run, checkpoint or adapter that is missing, finished already, or unusable."""

    exit_code = 4


class BusyError(RunError):
    """A run that another command is writing to."""


class AlteredError(RunError):
    """Stored bytes that are not the ones that were saved."""

    exit_code = 5


class ProofError(LoraMnistError):
    """Weights that should be frozen are not the recorded ones, or an adapter is not what it claims."""

    exit_code = 5


class DiskError(LoraMnistError):
    """The disk refused a write."""

    exit_code = 6


class LoRAError(LoraMnistError, ValueError):
    """What `lora_mnist.lora` cannot do as it was asked; the base of all its errors but `DiskError`."""

    exit_code = 2


class AdapterError(LoRAError, RunError):
    """An adapter's files are missing, unreadable, made for another base, or use what is not implemented."""

    exit_code = 4


class DamagedError(AdapterError, AlteredError):
    """Stored bytes that cannot be what was saved: a fingerprint that does not hold, a config that is not JSON."""

    exit_code = 5
