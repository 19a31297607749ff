"""The HTTP server of the playground: its routes, what they accept, and how it starts and stops.

It listens on this machine alone, but any page that a browser shows could send it requests. So the Host has to be this
machine (DNS rebinding, where a foreign name resolves to 127.0.0.1, is refused), and so is a request that another page
sends, recognised by its Origin or Sec-Fetch-Site.
"""

import asyncio
import copy
import errno
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_mnist.errors import AlteredError, BusyError, LoraMnistError, RunError, UsageError, shown
from lora_mnist.lora import load_adapter
from lora_mnist.pipeline.teach import NAME as TAUGHT
from lora_mnist.pipeline.workspace import Workspace, free_name, open_workspace
from lora_mnist.play.one_file import hold, pack_adapter, render
from lora_mnist.play.protocol import KeepRequest, TeachRequest
from lora_mnist.play.teaching import Teacher
from lora_mnist.runs.run import Run
from lora_mnist.settings.config import Document, first_fault
from lora_mnist.settings.request import Request as RunRequest

log = logging.getLogger("lora_mnist")

D = TypeVar("D", bound=Document)

ADDRESS = "127.0.0.1"  # this machine alone
HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # any port, since a tunnel may lead here from another
MAX_BODY_BYTES = 1 << 20  # 500 drawings are 0.8 MB
BODY_TIMEOUT = 10.0  # seconds
CLOSE = {"Connection": "close"}  # of a request of which nobody reads the rest
STATUS_BY_EXIT_CODE = {3: 422, 4: 404, 6: 507}  # of an error; others are 400
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # the page has one of its own
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def guarded(app: ASGIApp) -> ASGIApp:
    """`app` without the requests of other pages, which are refused, and with `SECURITY_HEADERS` on every response."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        problem = refusal_reason(scope["method"], scope["path"], Headers(scope=scope))
        await (error_response(403, problem) if problem else app)(scope, receive, send_with_headers)

    return guard


def refusal_reason(method: str, path: str, headers: Mapping[str, str]) -> str | None:
    """Why a request is refused, and the way out; None if it is allowed."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if not HOST.fullmatch(host):
        return f"The playground is not {host[:100]!r}. Open it as 127.0.0.1 or localhost."
    if origin is not None and origin != f"http://{host}":
        return f"A page of {origin[:100]!r} may not use the playground. Open its own page."
    is_visit = method == "GET" and path == "/"  # a link on another page may lead here
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_visit:
        return "Another page may not use the playground. Open its own page."
    # a form on another page can post text without asking the browser's permission (CORS), but not JSON
    if method == "POST" and headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return "A request has to be JSON. Send it with `Content-Type: application/json`."
    return None


async def read_body(request: Request, kind: type[D]) -> D:
    """The checked body. Raises HTTPException if it is too large or too slow, ValidationError if it is no `kind`."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for part in request.stream():  # counted as it comes, since Content-Length may be missing
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"A request has {MAX_BODY_BYTES:,} bytes at most.", CLOSE)
    except TimeoutError as error:
        raise HTTPException(408, "The request did not arrive in time.", CLOSE) from error
    return kind.model_validate_json(bytes(body))


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error, as JSON."""
    return JSONResponse({"error": {"status": status, "message": message}}, status, headers)


async def handle_error(request: Request, error: Exception) -> Response:
    """The response to a request that raised an error."""
    match error:
        case HTTPException():
            return error_response(error.status_code, error.detail, error.headers)
        case ValidationError():
            key, _, value, rule = first_fault(error)
            return error_response(400, f"`{key or 'body'}` (={shown(value)}) {rule[:1].lower()}{rule[1:]}. Correct it.")
        case LoraMnistError():
            status = 409 if isinstance(error, BusyError) else STATUS_BY_EXIT_CODE.get(error.exit_code, 400)
            return error_response(status, str(error))
        case ClientDisconnect():
            return Response(status_code=400)  # nobody reads it
    log.error("This is a bug in the playground.", exc_info=error)
    return error_response(500, f"This is a bug in lora-mnist: {type(error).__name__}: {error}. Please report it.")


def run_now(work: Workspace) -> dict[str, Any]:
    """The adapters of the run as they are on disk, packed for the page, and a free name for the next one.

    Of a damaged adapter there is its `problem`. Raises RunError if the base was replaced.
    """
    run, model, packed = Run(work.run.path), copy.deepcopy(work.base), []
    if run.base.evaluation.base_fingerprint != work.fingerprint.sha256:
        raise RunError(f"{run.base.folder} was replaced by another command.", "Start the playground again.")
    for name in run.adapter_names():
        try:
            load_adapter(run.require_adapter(name).file(""), model, name, work.fingerprint)
            packed.append(pack_adapter(model, name, run.adapter(name)))
        except RunError as error:
            problem = error.cause if isinstance(error, AlteredError) else str(error)
            packed.append({"name": name, "on_top_of": [], "problem": problem})
    return {"adapters": packed, "taught": free_name(TAUGHT, run.adapter_names())}


def page_now(work: Workspace) -> tuple[bytes, str]:
    """The page with the run as it is on disk, and its content security policy."""
    run, now = Run(work.run.path), run_now(work)
    usable = [run.adapter(one["name"]) for one in now["adapters"] if "problem" not in one]
    logits = [work.logits_with(())["test"], *(saved.logits()["test"] for saved in usable)]
    held = hold(work, "fp32", now["adapters"], [one.argmax(1) for one in logits]) | {"taught": now["taught"]}
    return render(work, held, "fp32, as the run has them", teach=True)


class Server(uvicorn.Server):
    """The playground of a run: it reads the run and teaches. The networks compute in the page.

    Raises RunError if there is no base.
    """

    def __init__(self, request: RunRequest):
        self.teacher = Teacher(request)
        self._work = open_workspace(request)
        run_now(self._work)  # so that a damaged run is reported now
        routes = [
            Route("/", self._page),
            Route("/api/run", self._run_info),
            Route("/api/teaching", self._lesson_states),
            Route("/api/teaching/adapter", self._lesson_adapter),
            Route("/api/teaching/{action}", self._teach, methods=["POST"]),
        ]
        errors = (HTTPException, ValidationError, LoraMnistError, ClientDisconnect, Exception)
        super().__init__(
            uvicorn.Config(
                guarded(Starlette(routes=routes, exception_handlers=dict.fromkeys(errors, handle_error))),
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                log_config=None,
                log_level="critical",
                timeout_graceful_shutdown=1,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the lesson, and the streams of its states, before the server stops."""
        self.teacher.close()
        await super().shutdown(sockets)

    def _page(self, request: Request) -> Response:  # as all that are not async, in a thread: it takes a while
        page, policy = page_now(self._work)
        headers = {"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
        return Response(page, media_type="text/html", headers=headers)

    def _run_info(self, request: Request) -> Response:
        return JSONResponse(run_now(self._work))

    async def _lesson_adapter(self, request: Request) -> Response:
        return JSONResponse(self.teacher.adapter)  # null unless a lesson waits for a decision

    async def _lesson_states(self, request: Request) -> Response:
        # live, as server-sent events
        events = (f"data: {state.model_dump_json()}\n\n" async for state in self.teacher.states())
        return StreamingResponse(events, media_type="text/event-stream")

    async def _teach(self, request: Request) -> Response:
        match request.path_params["action"]:
            case "ready":  # the first drawing was put aside, so there will be a lesson
                self.teacher.warm_up()
            case "start":
                lesson = await read_body(request, TeachRequest)
                self.teacher.start(lesson.drawings, lesson.tab)
            case "cancel":
                self.teacher.cancel()
            case "keep":
                self.teacher.keep((await read_body(request, KeepRequest)).name)
            case "discard":
                self.teacher.discard()
            case _:
                raise HTTPException(404)
        return Response(self.teacher.state.model_dump_json(), media_type="application/json")


def serve(request: RunRequest, port: int, announce: Callable[[str], None]) -> None:
    """Serve the playground of a run until a signal ends it. Raises as `listening` and `Server` do.

    Args:
        port: on this machine; 0 takes a free one.
        announce: called with the address when the page can be opened.
    """
    with listening(port) as listener:
        server = Server(request)
        announce(f"http://{ADDRESS}:{listener.getsockname()[1]}/")
        server.run(sockets=[listener])


def listening(port: int) -> socket.socket:
    """A socket that accepts connections of this machine. Raises UsageError if the port is not free."""
    try:
        if not 0 <= port < 2**16:  # which `create_server` leaves a socket open for
            raise OSError(errno.EINVAL, "")
        listener = socket.create_server((ADDRESS, port))
    except OSError as error:
        cause = f"`port` (={port}) cannot be used: {os.strerror(error.errno or 0)}."
        raise UsageError(cause, "Use --port 0, which takes a free one.") from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or Nagle's delay adds 40 ms to an answer
    return listener
