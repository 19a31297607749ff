"""The server: which request is answered by what."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from lora_mnist.play.answers import HANDLERS, read, written
from lora_mnist.play.networks import BLOCK, Networks
from lora_mnist.play.pages import static_files
from lora_mnist.play.protocol import Found, Keeping, Lesson, Question, Search
from lora_mnist.play.safety import Guarded
from lora_mnist.play.teaching import Teacher

T = TypeVar("T")


class Playground:
    """All that the page can ask for. The networks compute in one thread, so that the server goes on listening."""

    def __init__(self, networks: Networks, teacher: Teacher, thread: ThreadPoolExecutor):
        self._networks, self._teacher, self._thread = networks, teacher, thread

    def app(self) -> Guarded:
        """As uvicorn serves it."""
        pages = [Route(path, partial(_page, *file)) for path, file in static_files().items()]
        asked = {"predict": self.predict, "search": self.search}
        done = {"ready": self.ready, "start": self.start, "cancel": self.cancel, "keep": self.keep}
        done["discard"] = self.discard
        routes = [
            *pages,
            Route("/api/run", self.run),
            *(Route(f"/api/{name}", endpoint, methods=["POST"]) for name, endpoint in asked.items()),
            Route("/api/teaching", self.teaching),
            *(Route(f"/api/teaching/{name}", endpoint, methods=["POST"]) for name, endpoint in done.items()),
        ]
        return Guarded(Starlette(routes=routes, exception_handlers=HANDLERS))

    async def run(self, request: Request) -> Response:
        """The run and its adapters."""
        return written(await self._computed(self._networks.facts))

    async def predict(self, request: Request) -> Response:
        """What the networks see."""
        return written(await self._computed(self._networks.answer, await read(request, Question)))

    async def search(self, request: Request) -> Response:
        """A test image with a fault."""
        search = await read(request, Search)
        for start in range(0, self._networks.test_images, BLOCK):  # strokes are answered in between
            if (found := await self._computed(self._networks.find, search, start)) is not None:
                return written(Found(index=found))
        return written(Found(index=None))

    async def teaching(self, request: Request) -> Response:
        """How the teaching stands, live, as server-sent events."""
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def ready(self, request: Request) -> Response:
        """A drawing was put aside: there will be a lesson."""
        self._teacher.be_ready()
        return written(self._teacher.state)

    async def start(self, request: Request) -> Response:
        """Teach."""
        lesson = await read(request, Lesson)
        self._teacher.start(list(lesson.drawings))
        return written(self._teacher.state)

    async def cancel(self, request: Request) -> Response:
        """End the training."""
        self._teacher.cancel()
        return written(self._teacher.state)

    async def keep(self, request: Request) -> Response:
        """Save what was taught."""
        self._teacher.keep((await read(request, Keeping)).name)
        return written(self._teacher.state)

    async def discard(self, request: Request) -> Response:
        """Forget what was taught."""
        self._teacher.discard()
        return written(self._teacher.state)

    async def _events(self) -> AsyncIterator[str]:
        async for state in self._teacher.states():
            yield f"data: {state.model_dump_json()}\n\n"

    async def _computed(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


async def _page(content: bytes, kind: str, request: Request) -> Response:
    return Response(content, media_type=kind)
