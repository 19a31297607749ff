"""What ends a command → one message and the exit code of the design."""

import functools
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from lora_mnist.cli.start import LINES, Terminated, interruption, is_first_to_say
from lora_mnist.errors import DiskError, LoraMnistError, sentence

log = logging.getLogger("lora_mnist")


def returns_exit_code(function: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command, which has `json`, `quiet` and `debug`, so that its errors become a message and an exit code.

    What it returns is its exit code too; None is 0.
    """

    @functools.wraps(function)
    def handled(*, json: bool = False, quiet: bool = False, debug: bool = False, **options: Any) -> int:
        notes = logging.StreamHandler()  # to standard error
        notes.setFormatter(_Visible())
        log.addHandler(notes)
        log.setLevel(logging.WARNING if quiet else logging.INFO)
        try:
            _require_working_directory()
            code = function(json=json, quiet=quiet, debug=debug, **options)
            sys.stdout.flush()
        except BaseException as error:
            if debug:
                traceback.print_exc()
            return report_error(error, json)
        finally:
            log.removeHandler(notes)
        return code or 0

    return handled


def _require_working_directory() -> None:
    """Torch asks for it, and paths begin there."""
    try:
        os.getcwd()
    except OSError as error:
        raise DiskError(
            f"The working directory is not there any more: {error.strerror}.", "Change to one that is."
        ) from error


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return sentence(super().format(record))


def report_error(error: BaseException, as_json: bool) -> int:
    """Print `error` as a user should see it and return its exit code."""
    error = interruption() or error
    if isinstance(error, BrokenPipeError):
        silence_stdout()
        return 0
    code, message = _explain(error)
    message = sentence(message)
    try:
        if as_json and code < 128:
            print(json.dumps({"error": {"code": code, "type": type(error).__name__, "message": message}}), flush=True)
            return code
        sys.stdout.flush()
    except OSError:  # it is standard output itself that cannot be written
        silence_stdout()
    if code < 128 or is_first_to_say():
        print(f"Error: {message}" if code < 128 else message, file=sys.stderr)
    return code


def silence_stdout() -> None:
    """Let what is still to be printed vanish, or Python complains at its own exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, LoraMnistError):
        return error.exit_code, str(error)
    if isinstance(error, typer.TyperException):  # an unknown option or a value of the wrong type
        context = getattr(error, "ctx", None)
        return 2, f"{_cause(error)} See `{context.command_path if context else 'lora-mnist'} --help`."
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, LINES[signal.SIGINT]
    if isinstance(error, Terminated):
        return 143, LINES[signal.SIGTERM]
    if _is_out_of_memory(error):
        return 2, "There is not enough memory for this. Choose smaller sizes, fewer steps or a lower rank."
    if isinstance(error, OSError):
        return DiskError.exit_code, f"The system refused: {error}. Make room, or choose another place."
    return (
        1,
        f"This is a bug in lora-mnist: {type(error).__name__}: {error}. Run it again with --debug and report that.",
    )


def _cause(error: Any) -> str:
    """What Typer says as a sentence; of an unknown option also which commands have it, or which one was meant."""
    message = error.message if hasattr(error, "possibilities") else error.format_message()
    sentence = message if message.endswith((".", "?")) else f"{message}."
    if not hasattr(error, "possibilities"):
        return str(sentence)
    commands = error.ctx.find_root().command.commands.values()
    if others := [one.name for one in commands if any(error.option_name in option.opts for option in one.params)]:
        return f"{sentence} It belongs to {' and '.join(others)}."
    return f"{sentence} Did you mean {error.possibilities[0]}?" if error.possibilities else str(sentence)


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # without it, it has not raised anything
    if isinstance(error, (MemoryError, getattr(torch, "OutOfMemoryError", MemoryError))):
        return True
    # On the CPU torch raises a plain RuntimeError, known only by the name that its allocator gives itself.
    return type(error) is RuntimeError and "DefaultCPUAllocator" in str(error)
