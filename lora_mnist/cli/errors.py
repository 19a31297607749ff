"""What ends a command, an exception or a signal → one message and the documented exit code.

Imported before everything else, so nothing here takes time to import.
"""

import functools
import linecache
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from lora_mnist.errors import DiskError, LoraMnistError, listed, sentence, shown

log = logging.getLogger("lora_mnist")

LINES = {
    signal.SIGINT: "Interrupted; what was finished before is kept.",
    signal.SIGTERM: "Terminated; what was finished before is kept.",
}
OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
MOST_NAMED = 5  # commands that take an option, where one does not
GRACE = 0.8  # seconds to clean up in; what is left behind then is removed by the next writing command

received: signal.Signals | None = None  # a library may raise something else since, or carry on as if nothing were
_unsaid = threading.Lock()  # whoever takes it prints the line


def handle_signals() -> None:
    """Let both signals raise KeyboardInterrupt, so that whatever is being done cleans up and ends.

    One that the caller ignores, as `nohup` does, stays ignored.
    """
    global received, _unsaid
    received, _unsaid = None, threading.Lock()
    for number in LINES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    global received
    received = signal.Signals(number)
    for other in LINES:
        signal.signal(other, signal.SIG_IGN)  # a second one changes nothing
    sys.unraisablehook = lambda _: None  # objects that were cut short in their making are no news
    warnings.simplefilter("ignore")
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):  # torch, half imported, ends in its abort()
            _end()
        frame = frame.f_back
    watchdog = threading.Timer(GRACE, _end)  # if somebody catches what is raised, or cleans up for too long
    watchdog.daemon = True
    watchdog.start()
    raise KeyboardInterrupt


def _end() -> NoReturn:
    assert received is not None
    if _unsaid.acquire(blocking=False):
        os.write(2, f"{LINES[received]}\n".encode())
    os._exit(128 + received)


def returns_exit_code(function: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command, which has `json`, `quiet` and `debug`, so that its errors become a message and an exit code.

    What it returns is its exit code too; None is 0.
    """

    @functools.wraps(function)
    def handled(*, json: bool = False, quiet: bool = False, debug: bool = False, **options: Any) -> int:
        notes = logging.StreamHandler()  # to standard error
        notes.setFormatter(_OneLine())
        log.addHandler(notes)
        log.setLevel(logging.WARNING if quiet else logging.INFO)
        try:
            try:
                os.getcwd()  # torch asks for it, and paths begin there
            except OSError as error:
                cause = f"The working directory is not there any more: {error.strerror}."
                raise DiskError(cause, "Change to one that is.") from error
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


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return sentence(super().format(record))


def report_error(error: BaseException, as_json: bool) -> int:
    """Print `error` as a user should see it and return its exit code."""
    if received or isinstance(error, KeyboardInterrupt):
        number = received or signal.SIGINT
        if _unsaid.acquire(blocking=False):
            print(LINES[number], file=sys.stderr)
        return 128 + number
    if isinstance(error, BrokenPipeError):
        silence_stdout()
        return 0
    code, message = _explain(error)
    message = sentence(message)
    try:
        if as_json:
            import json

            print(json.dumps({"error": {"code": code, "type": type(error).__name__, "message": message}}), flush=True)
            return code
        sys.stdout.flush()
    except OSError:  # it is standard output itself that cannot be written
        silence_stdout()
    print(f"Error: {message}", file=sys.stderr)
    return code


def silence_stdout() -> None:
    """Let what is still to be printed vanish, or Python complains at its own exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: BaseException) -> tuple[int, str]:
    import typer

    torch = sys.modules.get("torch")  # if nobody has imported it, it has not raised anything
    if isinstance(error, LoraMnistError):
        return error.exit_code, str(error)
    if isinstance(error, typer.TyperException):  # an unknown option or a value of the wrong type
        context = getattr(error, "ctx", None)
        return 2, f"{_wrong_use(error)} See `{context.command_path if context else 'lora-mnist'} --help`."
    if isinstance(error, (MemoryError, getattr(torch, "OutOfMemoryError", MemoryError))) or (
        # On the CPU torch raises a plain RuntimeError, known only by the name that its allocator gives itself.
        type(error) is RuntimeError and "DefaultCPUAllocator" in str(error)
    ):
        return 2, "There is not enough memory for this. Choose smaller sizes, fewer steps or a lower rank."
    if type(error) is RuntimeError and "home directory" in str(error):  # pathlib's, as for --install-completion
        return 2, "It is not known which folder is your home. Set HOME to it."
    if variable := _unusable_variable(error):
        why = " ".join(str(error).split()).partition(". ")[0].rstrip(".") or type(error).__name__
        cause = f"The environment's `{variable}` (={shown(os.environ[variable])}) is of no use: {why}."
        return 2, f"{cause} Correct it, or unset it."
    if isinstance(error, OSError):
        return DiskError.exit_code, f"The system refused: {error}. Make room, or choose another place."
    name = type(error).__name__
    return 1, f"This is a bug in lora-mnist: {name}: {error}. Run it again with --debug and report that."


def _unusable_variable(error: BaseException) -> str | None:
    """The variable of the environment that made a library raise `error`, as TQDM_NCOLS=x does; None if none did.

    The file that raised it reads that variable, or is of the package that the variable is named after; and either it
    was about to be imported, or the error quotes the value.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or frames[-1].filename.startswith(OURS):
        return None
    file, source = frames[-1].filename, "".join(linecache.getlines(frames[-1].filename))
    package = file.rpartition(f"-packages{os.sep}")[2].split(os.sep)[0]
    in_import = frames[-1].name == "<module>" and not isinstance(error, ImportError)
    for name, value in os.environ.items():
        reads = re.search(rf"[\"']{re.escape(name)}[\"']", source) or name.lower().startswith(f"{package}_")
        quotes = not isinstance(error, OSError) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", str(error))
        if value and name != "_" and reads and (in_import or quotes):
            return name
    return None


def _wrong_use(error: Any) -> str:
    """What Typer says as a sentence; of an unknown option also which commands have it, or which one was meant."""
    unknown = hasattr(error, "possibilities")
    message = str(error.message if unknown else error.format_message())
    message += "" if message.endswith((".", "?")) else "."
    if not unknown:
        return message
    commands = error.ctx.find_root().command.commands.values()
    if others := [one.name for one in commands if any(error.option_name in option.opts for option in one.params)]:
        if (more := len(others) - MOST_NAMED) > 1:
            others[MOST_NAMED:] = [f"{more} others"]
        return f"{message} It belongs to {listed(others)}."
    return f"{message} Did you mean {error.possibilities[0]}?" if error.possibilities else message
