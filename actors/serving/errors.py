"""What a client is told when a request can't be served: OpenAI's shape and codes."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from ...configs.problems import explain, field_of
from ...errors import EngineDeadError, PenstockError, RequestError
from ..prompts import ContextLengthError, PromptError

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
_MAX_CHARS = 2000  # of a message, which may repeat what a client sent
_MAX_PROBLEMS = 100  # of a body, that are told one by one


class ErrorBody(BaseModel):
    """The error of an answer."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class ErrorResponse(BaseModel):
    """An answer that is an error."""

    error: ErrorBody


class ApiError(Exception):
    """Ends a request with this status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: Any = None,
    ) -> None:
        message = message if len(message) <= _MAX_CHARS else message[:_MAX_CHARS] + "…"
        super().__init__(message)
        self.status = status
        self.body = ErrorResponse(error=ErrorBody(message=message, type=kind, param=param, code=code or status))

    def response(self) -> Response:
        """The answer."""
        headers = {"connection": "close"} if self.status in (408, 413) else {}
        if self.status in (429, 503):
            headers["retry-after"] = str(RETRY_AFTER_S)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body.model_dump(), self.status, headers)


def refused(message: str, param: str | None = None) -> ApiError:
    """A request that can't be served as it is."""
    return ApiError(400, message, param=param)


def refused_prompt(error: PromptError, num_prompts: int, field: str | None) -> ApiError:
    """One prompt of a request that can't be served; its number is told where there are several.

    `field` is where it is from; None: the engine has refused it, perhaps for another field.
    """
    message = str(error) if num_prompts > 1 else f"prompt: {error.reason}"
    code = "context_length_exceeded" if isinstance(error, ContextLengthError) else None
    return ApiError(400, message, param=error.field or field, code=code)


def malformed(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """A body that is no request, with every wrong value; of very many their number, for each costs time to tell."""
    if error.error_count() > _MAX_PROBLEMS:
        return refused(f"the body has {error.error_count()} wrong values")
    return refused(explain(error, model.model_fields, "field"), field_of(error))


def api_error(error: Exception) -> ApiError:
    """Any exception as an answer; what nobody expected goes to the log, and says nothing about the inside."""
    if (known := _known(error)) is not None:
        return known
    log.error("a request has failed", exc_info=error)
    return ApiError(500, "the server has failed to answer this request", kind="server_error")


def status_of(error: Exception) -> int:
    """The status of an exception's answer."""
    known = _known(error)
    return 500 if known is None else known.status


def _known(error: Exception) -> ApiError | None:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineDeadError):
        return ApiError(503, str(error), kind="server_error", code="engine_dead")
    if isinstance(error, RequestError):
        return refused(str(error), error.field)
    if isinstance(error, PenstockError):
        return ApiError(503, str(error), kind="server_error")
    return None
