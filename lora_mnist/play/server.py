"""The HTTP server of the playground: its routes, what they accept, and how it starts and stops.

It listens on this machine alone, but any page that a browser shows could send it requests. So the Host has to be this
machine (DNS rebinding, where a foreign name resolves to 127.0.0.1, is refused), and so is a request that another page
sends, recognised by its Origin or Sec-Fetch-Site.
"""

import copy
import errno
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from pydantic import ValidationError

from lora_mnist.browser.one_file import pack_adapter, page_data, render
from lora_mnist.errors import AlteredError, BusyError, LoraMnistError, RunError, UsageError, shown
from lora_mnist.lora import load_adapter
from lora_mnist.pipeline.teach import NAME as TAUGHT
from lora_mnist.pipeline.teach import TaughtAdapter
from lora_mnist.pipeline.workspace import Workspace, free_name, open_workspace
from lora_mnist.play.teaching import KeepRequest, Teacher, TeachRequest
from lora_mnist.runs.run import Run
from lora_mnist.settings.config import first_fault
from lora_mnist.settings.request import Request

log = logging.getLogger("lora_mnist")

ADDRESS = "127.0.0.1"  # this machine alone
HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # any port, since a tunnel may lead here from another
MAX_BODY_BYTES = 1 << 20  # 500 drawings are 0.8 MB
INTERVAL = 0.1  # seconds between two lesson states that a browser is sent; it misses those in between
IDLE = 15.0  # seconds without a new one, after which it is sent a blank, to notice that it is gone
UNKEPT = "this lesson"  # what the page calls an adapter that is not kept yet; no kept one can have a space in its name
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def refusal_reason(method: str, path: str, headers: Mapping[str, str] | Message) -> str | None:
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


class Handler(BaseHTTPRequestHandler):
    """Answers one request, in a thread of its own, and closes the connection."""

    server: "Server"
    timeout = 10.0  # seconds for the next part of a request to arrive
    disable_nagle_algorithm = True  # or it adds 40 ms to an answer

    def do_GET(self) -> None:
        length = self.headers.get("content-length", "0")
        body = self.rfile.read(min(int(length) if length.isdecimal() else 0, MAX_BODY_BYTES + 1))
        self.connection.settimeout(None)  # through a tunnel the page may take longer to send
        try:
            if problem := refusal_reason(self.command, self.path, self.headers):
                self.send_error(403, problem)
            elif len(body) > MAX_BODY_BYTES:
                self.send_error(413, f"A request has {MAX_BODY_BYTES:,} bytes at most.")
            else:
                self._answer(body)
        except ConnectionError:
            pass  # the browser has gone
        except ValidationError as error:
            key, _, value, rule = first_fault(error)
            self.send_error(400, f"`{key or 'body'}` (={shown(value)}) {rule[:1].lower()}{rule[1:]}. Correct it.")
        except LoraMnistError as error:
            self.send_error(409 if isinstance(error, BusyError) else 400, str(error))
        except Exception as error:
            log.error("This is a bug in the playground.", exc_info=error)
            self.send_error(500, f"This is a bug in lora-mnist: {type(error).__name__}: {error}. Please report it.")

    do_POST = do_GET

    def _answer(self, body: bytes) -> None:
        teacher = self.server.teacher
        match self.command, self.path:
            case "GET", "/":
                page, policy = page_now(self.server.work)
                self._begin(200, "text/html; charset=utf-8", policy)
                self.wfile.write(page)
                return
            case "GET", "/api/run":
                self._send_json(200, run_now(self.server.work, teacher.taught))
                return
            case "GET", "/api/teaching":
                self._stream_states()
                return
            case "POST", "/api/teaching/ready":  # the first drawing was put aside, so there will be a lesson
                teacher.warm_up()
            case "POST", "/api/teaching/start":
                teacher.start(TeachRequest.model_validate_json(body))
            case "POST", "/api/teaching/keep":
                teacher.keep(KeepRequest.model_validate_json(body).name)
            case "POST", "/api/teaching/discard":
                teacher.discard()
            case _:
                self.send_error(404)
                return
        self._send_json(200, {})

    def _stream_states(self) -> None:
        """Until the browser goes, as server-sent events."""
        self._begin(200, "text/event-stream")
        seen = None
        while True:
            state = self.server.teacher.state_after(seen, IDLE)
            event = ":" if state is seen else f"data: {state.model_dump_json()}"
            self.wfile.write(f"{event}\n\n".encode())
            seen = state
            time.sleep(INTERVAL)

    def _begin(self, status: int, kind: str, policy: str = "default-src 'none'") -> None:
        self.send_response_only(status)
        policy = f"{policy}; frame-ancestors 'none'"
        for name, value in (SECURITY_HEADERS | {"Content-Security-Policy": policy, "Content-Type": kind}).items():
            self.send_header(name, value)
        self.end_headers()

    def _send_json(self, status: int, content: Mapping[str, Any]) -> None:
        self._begin(status, "application/json")
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing of it is news."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """An error, as JSON; also of what is no HTTP."""
        self._send_json(code, {"error": {"status": code, "message": message or HTTPStatus(code).phrase}})


class Server(ThreadingTCPServer):
    """The playground of a run: it reads the run and teaches, from `serve_forever` until the `with` around it ends.

    Args:
        port: on this machine; 0 takes a free one.

    Raises RunError if there is no base, UsageError if the port is not free.
    """

    allow_reuse_address = os.name == "posix"  # just after the last one ended; Windows would share a port that is taken
    daemon_threads = True  # whatever is being sent ends with the program
    request_queue_size = 128

    def __init__(self, request: Request, port: int):
        self.teacher, self.work = Teacher(request), open_workspace(request)
        run_now(self.work)  # so that a damaged run is reported now
        try:
            super().__init__((ADDRESS, port), Handler)
        except (OSError, OverflowError) as error:
            why = os.strerror(getattr(error, "errno", None) or errno.EINVAL)
            raise UsageError(
                f"`port` (={port}) cannot be used: {why}.", "Use --port 0, which takes a free one."
            ) from error

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def server_close(self) -> None:
        """Listen no longer, and end the lesson."""
        super().server_close()
        self.teacher.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that breaks is no news."""


def run_now(work: Workspace, taught: TaughtAdapter | None = None) -> dict[str, Any]:
    """The adapters of the run as they are on disk, and the `taught` one, packed for the page; a free name for it.

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
    if taught and taught.guard.scale is not None:
        unkept = pack_adapter(taught.on(work.base), TAUGHT)
        packed.append(unkept | {"name": UNKEPT, "summary": "not kept yet"})
    return {"adapters": packed, "taught": free_name(TAUGHT, run.adapter_names())}


def page_now(work: Workspace) -> tuple[bytes, str]:
    """The page with the run as it is on disk, and its content security policy."""
    run, adapters = Run(work.run.path), run_now(work)["adapters"]
    usable = [run.adapter(one["name"]) for one in adapters if "problem" not in one]
    logits = [work.logits_with(())["test"], *(saved.logits()["test"] for saved in usable)]
    data = page_data(work, "fp32", adapters, [one.argmax(1) for one in logits])
    return render(work, data, "fp32, as the run has them", teach=True)
