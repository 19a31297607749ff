"""From a request to a running playground, and to its end."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from lora_mnist.errors import UsageError
from lora_mnist.pipeline.workspace import open_workspace
from lora_mnist.play.networks import Networks
from lora_mnist.play.server import Playground
from lora_mnist.play.teaching import Teacher
from lora_mnist.settings.request import Request
from lora_mnist.training.device import prepare

ADDRESS = "127.0.0.1"  # this machine alone


class Server(uvicorn.Server):
    """uvicorn's, which ends the lesson and its streams first when it is told to stop."""

    def __init__(self, playground: Playground, teacher: Teacher):
        super().__init__(
            uvicorn.Config(
                playground.app(),
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,
                log_level="critical",
                timeout_graceful_shutdown=1,
            )
        )
        self.teacher = teacher

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop."""
        self.teacher.close()
        await super().shutdown(sockets)


def serve(request: Request, port: int, announce: Callable[[str], None]) -> None:
    """Serve the playground of a run until a signal ends it.

    Args:
        port: on this machine; 0 takes a free one.
        announce: called with the address when the page can be opened.

    Raises:
        UsageError: the port is not free.
        RunError: there is no base.
    """
    with listening(port) as listener:
        server = make_server(request)
        announce(f"http://{ADDRESS}:{listener.getsockname()[1]}/")
        server.run(sockets=[listener])


def listening(port: int) -> socket.socket:
    """A socket that waits for browsers. Raises UsageError if the port is not free."""
    # named as TCP, or asyncio leaves Nagle's delay on, which adds 40 ms to an answer
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free
        listener.bind((ADDRESS, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        cause = f"`port` (={port}) cannot be used: {reason}."
        raise UsageError(cause, "Use --port 0, which takes a free one.") from error
    return listener


def make_server(request: Request) -> Server:
    """The server of a run, not running yet. Raises RunError if there is no base."""
    networks, teacher = Networks(open_workspace(request)), Teacher(request)
    networks.facts()  # so that a fault of the run is told now
    # what `prepare` sets holds for a thread
    thread = ThreadPoolExecutor(1, initializer=lambda: prepare(request.device, request.threads) and None)
    return Server(Playground(networks, teacher, thread), teacher)
