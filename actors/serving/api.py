"""The HTTP API of one replica: routes, keys, errors, and the OpenAPI document.

Bodies are read and checked by the endpoints themselves, within bounds of size, time and depth; FastAPI routes and
documents.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ... import __version__
from .auth import Keys
from .chat import chat_completions
from .chat_protocol import ChatRequest, ChatResponse
from .completion_protocol import CompletionRequest, CompletionResponse
from .completions import completions
from .errors import ApiError, ErrorResponse, api_error
from .responses import responses
from .responses_output import ResponseObject
from .responses_protocol import ResponsesRequest
from .service import Service
from .streams import ClientGoneError
from .token_protocol import (
    DetokenizeRequest,
    DetokenizeResponse,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
)
from .tokens import detokenize, embeddings, models, tokenize

Endpoint = Callable[[Service, Request], Awaitable[Response]]
Health = Callable[[], Awaitable[None]]
Metrics = Callable[[], Awaitable[str]]

_ERRORS = {400: "wrong", 401: "no valid key", 404: "no such model", 408: "too slow", 413: "too large"}
_ERRORS |= {429: "full, try later", 500: "failed", 503: "not ready, or ending"}
_STREAMED = "the answer; with `stream`, events with its pieces, each of them JSON, the last of all `[DONE]`"
_TYPED = "the answer; with `stream`, events with what happens to it, each of a type, the last with the whole of it"


class Api:
    """Puts the endpoints of a service onto an app."""

    def __init__(self, service: Service, keys: Keys, health: Health, metrics: Metrics) -> None:
        self.app = FastAPI(title="Penstock", version=__version__, openapi_url="/openapi.json", redoc_url=None)
        self._service, self._keys = service, keys
        self._models: list[type[BaseModel]] = [ErrorResponse]
        self._post("/v1/completions", completions, CompletionRequest, CompletionResponse, _STREAMED)
        self._post("/v1/chat/completions", chat_completions, ChatRequest, ChatResponse, _STREAMED)
        self._post("/v1/responses", responses, ResponsesRequest, ResponseObject, _TYPED)
        self._post("/tokenize", tokenize, TokenizeRequest, TokenizeResponse)
        self._post("/detokenize", detokenize, DetokenizeRequest, DetokenizeResponse)
        self._post("/v1/embeddings", embeddings, None, None)
        self._get("/v1/models", models, ModelList)
        self._get("/v1/models/{model:path}", models, ModelCard)
        self._open("/health", lambda: _health(health))
        self._open("/metrics", lambda: _metrics(metrics))
        self._open("/version", _version)
        self.app.add_exception_handler(HTTPException, _http_error)
        self.app.openapi = self._document  # type: ignore[method-assign]
        if origins := service.config.allowed_origins:
            self.app.add_middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"]
            )

    def _post(
        self,
        path: str,
        endpoint: Endpoint,
        body: type[BaseModel] | None,
        answer: type[BaseModel] | None,
        streamed: str = "",
    ) -> None:
        extra: dict[str, Any] = {"responses": self._answers(answer, streamed)}
        if body is not None:
            self._models.append(body)
            extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
        self._add(path, "POST", endpoint, extra)

    def _get(self, path: str, endpoint: Endpoint, answer: type[BaseModel]) -> None:
        extra: dict[str, Any] = {"responses": self._answers(answer)}
        if "{" in path:
            extra["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
        self._add(path, "GET", endpoint, extra)

    def _add(self, path: str, method: str, endpoint: Endpoint, extra: dict[str, Any]) -> None:
        async def guarded(request: Request) -> Response:
            return await self._guarded(endpoint, request)

        self.app.add_api_route(
            path, guarded, methods=[method], openapi_extra=extra, name=endpoint.__name__, response_class=Response
        )

    def _open(self, path: str, answer: Callable[[], Awaitable[Response]]) -> None:
        """A route that needs no key."""

        async def answered(request: Request) -> Response:
            try:
                return await answer()
            except Exception as error:
                return api_error(error).response()

        extra = {"responses": {"200": {"description": "it is so"}, "503": {"description": "not ready, or ending"}}}
        self.app.add_api_route(
            path, answered, methods=["GET"], openapi_extra=extra, name=path[1:], response_class=Response
        )

    async def _guarded(self, endpoint: Endpoint, request: Request) -> Response:
        """The endpoint's answer; whatever it raises becomes one too."""
        try:
            self._keys.check(request.headers.get("authorization"))
            return await endpoint(self._service, request)
        except ClientGoneError:
            return Response(status_code=499)
        except Exception as error:  # the request's top: every request is answered
            answer = api_error(error)
            self._service.metrics.refused(answer.status)
            return answer.response()

    def _answers(self, answer: type[BaseModel] | None, streamed: str = "") -> dict[str, Any]:
        """What may come back; `streamed` describes an answer that may come as events."""
        content: dict[str, Any] = {}
        if answer is not None:
            self._models.append(answer)
            content["application/json"] = {"schema": _ref(answer)}
        if streamed:
            content["text/event-stream"] = {}  # of many documents of JSON, which no schema of one describes
        errors = {"application/json": {"schema": _ref(ErrorResponse)}}
        answers: dict[str, Any] = {str(status): {"description": w, "content": errors} for status, w in _ERRORS.items()}
        if content:
            answers["200"] = {"description": streamed or "the answer", "content": content}
        return answers

    def _document(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.app.openapi_schema is None:
            document = get_openapi(title=self.app.title, version=self.app.version, routes=self.app.routes)
            _, schemas = models_json_schema(
                [(model, "validation") for model in self._models], ref_template="#/components/schemas/{model}"
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
            for methods in document["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
                    if "503" in operation["responses"] and "400" not in operation["responses"]:
                        continue
                    if self._keys:
                        operation["security"] = [{"key": []}]
            if self._keys:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            self.app.openapi_schema = document
        return self.app.openapi_schema


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


async def _health(check: Health) -> Response:
    await check()
    return PlainTextResponse("ok\n")


async def _metrics(render: Metrics) -> Response:
    return PlainTextResponse(await render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _version() -> Response:
    return JSONResponse({"version": __version__})


async def _http_error(request: Request, error: Exception) -> Response:
    """FastAPI's own refusals (no such path, wrong method) in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    answer = ApiError(error.status_code, f"{request.method} {request.url.path[:256]}: {error.detail}").response()
    answer.headers.update(error.headers or {})
    return answer
