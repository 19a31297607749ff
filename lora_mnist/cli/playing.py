"""The playground's command."""

from dataclasses import dataclass
from typing import Annotated

from lora_mnist.cli import options as o
from lora_mnist.cli.app import command
from lora_mnist.cli.output import open_address, print_json, write
from lora_mnist.cli.panels import in_output, in_run
from lora_mnist.errors import UsageError

Port = Annotated[int, in_output("--port", "Port of the page on this machine; 0 takes a free one.", "N")]


@dataclass(frozen=True)
class Machine(o.Machine):
    """What there is to compute with: a thread is enough for one picture, and leaves the others to the training."""

    threads: Annotated[int, in_run("--threads", "CPU threads of an answer, and of the training.", "N")] = 1


@command
def play(*, place: o.Place, machine: Machine, port: Port = 8017, open: o.Open = False, output: o.Output) -> None:
    """Draw digits on a local page, compare the base with its adapters, and teach it your own hand.

    It serves until Ctrl-C ends it, to browsers on this machine alone.

    Example: lora-mnist play --run runs/default --open
    """
    try:
        from lora_mnist.play.server import serve
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("starlette", "uvicorn"):
            raise
        raise UsageError(
            f"The playground needs {missing}, which is not installed.",
            "Install the extra `play`, in a checkout by pip install -e '.[play]'.",
        ) from error

    def announce(address: str) -> None:
        if output.json:
            print_json({"address": address, "run": str(place.run)})
        else:
            write(f"{address}\n" if output.quiet else f"Playing with {place.run} at {address} (Ctrl-C ends it)\n")
        if open:
            open_address(address)

    serve(o.request_of(place, machine, output, o.Recipe()), port, announce)
