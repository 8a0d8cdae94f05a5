"""The endpoints around the model: its name, its tokens."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..prompts import PromptDict
from .chat_prompt import chat_prompt
from .chat_protocol import ChatRequest
from .errors import ApiError, refused
from .fields import only_one
from .service import Service, offloaded
from .token_protocol import (
    DetokenizeRequest,
    DetokenizeResponse,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
)


async def models(service: Service, request: Request) -> Response:
    """`/v1/models`, and one of them by its name."""
    card = ModelCard(
        id=service.model_name,
        created=service.started,
        root=service.model_name,
        max_model_len=service.engine.limits.max_model_len,
    )
    name = request.path_params.get("model")
    if request.scope["path"].endswith("\n"):  # which a route leaves out of what it matches
        name = f"{name or ''}\n"
    if not name:  # also behind a slash at the end
        return JSONResponse(ModelList(data=[card]).model_dump())
    service.check_model(name)
    return JSONResponse(card.model_dump())


async def tokenize(service: Service, request: Request) -> Response:
    """Text, or a conversation in the chat template, as token ids."""
    body = await service.parse(request, TokenizeRequest)
    service.check_model(body.model)
    content = await offloaded(request, lambda: _tokenized(service, body).model_dump_json())
    return Response(content, media_type="application/json")


async def detokenize(service: Service, request: Request) -> Response:
    """Token ids as text."""
    body = await service.parse(request, DetokenizeRequest)
    service.check_model(body.model)
    vocab_size = service.engine.limits.vocab_size
    for token_id in body.tokens:
        if not 0 <= token_id < vocab_size:
            raise refused(f"tokens holds {token_id}; ids go from 0 to {vocab_size - 1}", "tokens")
    text = await offloaded(request, lambda: service.tokenizer.decode(body.tokens, skip_special_tokens=False))
    return JSONResponse(DetokenizeResponse(prompt=text).model_dump())


async def embeddings(service: Service, request: Request) -> Response:
    """Refused clearly."""
    raise ApiError(404, "embeddings can't be had here: a generating model is served", code="not_supported")


def _tokenized(service: Service, body: TokenizeRequest) -> TokenizeResponse:
    ids = _encode(service, body)
    response = TokenizeResponse(count=len(ids), max_model_len=service.engine.limits.max_model_len, tokens=ids)
    if body.return_token_strs:
        response.token_strs = [service.tokenizer.piece(token_id) for token_id in ids]
    return response


def _encode(service: Service, body: TokenizeRequest) -> list[int]:
    if only_one(prompt=body.prompt, messages=body.messages) == "prompt":
        (ids,) = service.tokenizer.encode([body.prompt or ""], body.add_special_tokens is not False)
        return ids
    chat = ChatRequest.model_construct(
        messages=body.messages or [],
        tools=body.tools,
        add_special_tokens=body.add_special_tokens,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    prompt: PromptDict = chat_prompt(chat, service.tokenizer, wants_thinking=True)
    return prompt["prompt_token_ids"]
