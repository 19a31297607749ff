"""From the words typed to an exit code."""

import os
import sys
from collections.abc import Sequence

import typer

from lora_mnist.cli import commands as commands  # registers them
from lora_mnist.cli import completion
from lora_mnist.cli import drawing as drawing
from lora_mnist.cli import playing as playing
from lora_mnist.cli import sweeping as sweeping
from lora_mnist.cli import teaching as teaching
from lora_mnist.cli.app import app
from lora_mnist.cli.exits import report_error, silence_stdout
from lora_mnist.cli.start import interruption, listen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    listen()
    try:
        _prepare_output()
        completion.join_options()
        code = typer.main.get_command(app).main(arguments, "lora-mnist", standalone_mode=False)
        sys.stdout.flush()
        if interrupted := interruption():  # Typer tells of some by its code alone
            raise interrupted
        return code or 0
    except SystemExit as ended:  # so do Typer's completion, with its answer, and its help where nobody reads on
        silence_stdout()
        return int(ended.code or 0) if completion.is_asked() else 0
    except BaseException as error:
        return report_error(error, "--json" in arguments)


def _prepare_output() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="replace")  # a terminal that has no "·" shows "?" rather than a traceback
