"""Requests in, answers out, both JSON; an error too, whatever went wrong."""

import asyncio
import logging
from typing import TypeVar

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from lora_mnist.errors import BusyError, LoraMnistError, shown
from lora_mnist.settings.strict import Document, first_fault

log = logging.getLogger("lora_mnist")

D = TypeVar("D", bound=Document)

LARGEST_BODY = 1 << 20  # bytes: 500 drawings are 0.8 MB
PATIENCE = 10.0  # seconds for a body to arrive in
STATUS = {3: 422, 4: 404, 6: 507}  # by exit code; others are 400


async def read(request: Request, kind: type[D]) -> D:
    """The body as a `kind`.

    Raises:
        HTTPException: it is too large (413) or too slow (408).
        ValidationError: it is not what it should be.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST_BODY:
                    raise HTTPException(413, f"A request has {LARGEST_BODY:,} bytes at most.", {"Connection": "close"})
    except TimeoutError as error:
        raise HTTPException(408, "The request did not arrive in time.", {"Connection": "close"}) from error
    return kind.model_validate_json(bytes(body))


def written(document: Document) -> Response:
    """A document as an answer."""
    return Response(document.model_dump_json(), media_type="application/json")


def refusal(status: int, cause: str, way_out: str) -> Response:
    """An error as an answer."""
    message = f"{cause} {way_out}".strip()
    return JSONResponse({"error": {"status": status, "message": message}}, status)


async def explain(request: Request, error: Exception) -> Response:
    """What went wrong, as an answer."""
    match error:
        case HTTPException():
            answer = refusal(error.status_code, error.detail, "")
            answer.headers.update(error.headers or {})
            return answer
        case ValidationError():
            key, _, value, rule = first_fault(error)
            return refusal(400, f"`{key or 'body'}` (={shown(value)}) {rule[:1].lower()}{rule[1:]}.", "Correct it.")
        case BusyError():
            return refusal(409, error.cause, error.way_out)
        case LoraMnistError():
            return refusal(STATUS.get(error.exit_code, 400), error.cause, error.way_out)
        case ClientDisconnect():
            return Response(status_code=400)  # nobody reads it
    log.error("This is a bug in the playground.", exc_info=error)
    return refusal(500, f"This is a bug in lora-mnist: {type(error).__name__}: {error}.", "Please report it.")


HANDLERS = dict.fromkeys((HTTPException, ValidationError, LoraMnistError, ClientDisconnect, Exception), explain)
