"""A job's way out: the whole answer, or its pieces as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .errors import ApiError
from .service import Job, Service
from .streams import EventStream, error_event, until_gone


class Reply(Protocol):
    """A job's answers in an API's form."""

    def whole(self) -> dict[str, Any]:
        """The response of a request that has ended."""

    def chunks(self) -> AsyncGenerator[bytes]:
        """The response as events."""


async def replied(
    service: Service,
    request: Request,
    job: Job,
    reply: Reply,
    streams: bool,
    failure: Callable[[ApiError], bytes] = error_event,
) -> Response:
    """Runs the job; raises what refuses it before anything is sent, ClientGoneError among it.

    `failure` is the end of a stream that fails.
    """
    if streams:
        return await EventStream.start(request.receive, reply.chunks(), failure)
    await until_gone(request.receive, service.finish(job))
    return JSONResponse(reply.whole())
