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

from lora_mnist.errors import DiskError, LoraMnistError

log = logging.getLogger("lora_mnist")


def returns_exit_code(function: Callable[..., None]) -> Callable[..., int]:
    """Wrap a command, which has `json`, `quiet` and `debug`, so that its errors become a message and an exit code."""

    @functools.wraps(function)
    def handled(*, json: bool = False, quiet: bool = False, debug: bool = False, **options: Any) -> int:
        notes = logging.StreamHandler()  # to standard error
        log.addHandler(notes)
        log.setLevel(logging.WARNING if quiet else logging.INFO)
        try:
            function(json=json, quiet=quiet, debug=debug, **options)
            sys.stdout.flush()
        except BaseException as error:
            if debug:
                traceback.print_exc()
            return report_error(error, json)
        finally:
            log.removeHandler(notes)
        return 0

    return handled


class _Terminated(BaseException):
    pass


def listen_to_termination() -> None:
    """Let SIGTERM end a command as Ctrl-C does, so that it cleans up."""

    def terminate(*_: Any) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)


def report_error(error: BaseException, as_json: bool) -> int:
    """Print `error` as a user should see it and return its exit code."""
    if isinstance(error, BrokenPipeError):
        silence_stdout()
        return 0
    code, message = _explain(error)
    try:
        if as_json and code < 128:
            print(json.dumps({"error": {"code": code, "type": type(error).__name__, "message": message}}), flush=True)
            return code
        sys.stdout.flush()
    except OSError:  # it is standard output itself that cannot be written
        silence_stdout()
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
        return 130, "Interrupted; what was finished before is kept."
    if isinstance(error, _Terminated):
        return 143, "Terminated; what was finished before is kept."
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
