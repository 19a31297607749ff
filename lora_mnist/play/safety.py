"""What keeps other pages out: whose requests are answered, and what a browser may do with the answers.

The server listens on this machine alone, but every page that a browser shows could send it requests. So the Host has to
be this machine (a foreign name that resolves to it, as in DNS rebinding, is refused), and a request that another page
sends, by its Origin or Sec-Fetch-Site, is refused too.
"""

import re
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_mnist.play.answers import refusal

HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # any port, since a tunnel may lead here from another
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guarded:
    """`app`, for pages of its own alone, and with `HEADERS` on whatever it answers."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        problem = fault(scope["method"], scope["path"], Headers(scope=scope))
        app = refusal(403, *problem) if problem else self._app
        await app(scope, receive, send_with_headers)


def fault(method: str, path: str, headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Why a request is not answered, and the way out; None if it is."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if not HOST.fullmatch(host):
        return f"The playground is not {host[:100]!r}.", "Open it as 127.0.0.1 or localhost."
    if origin is not None and origin != f"http://{host}":
        return f"A page of {origin[:100]!r} may not use the playground.", "Open its own page."
    is_visit = method == "GET" and path == "/"  # a link on another page may lead here
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_visit:
        return "Another page may not use the playground.", "Open its own page."
    if method == "POST" and headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return "A request has to be JSON.", "Send it with `Content-Type: application/json`."
    return None
