"""/v1/models, /v1/completions and /v1/chat/completions: what OpenAI's client calls."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from serve.api.asking import chat_ask, completion_ask
from serve.api.context import Hub, caller, named_owner
from serve.api.forms import ChatForm, CompletionForm
from serve.api.shapes import ChatShape, CompletionShape
from serve.api.streaming import answered, streamed
from serve.api.views import ChatCompletion, Completion, Model, ModelList, streams
from serve.identity import ANYBODY, Identity

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
Generating = Annotated[Identity, Depends(caller("generate"))]


@router.post("/completions", response_model=Completion, responses=streams())
async def completions(form: CompletionForm, request: Request, hub: Hub, who: Generating) -> Response:
    """Continue a prompt, by the base or by a user's assembled model."""
    ask = await completion_ask(form, who, hub)
    shape = CompletionShape(form.model, logprobs=form.logprobs is not None)
    if form.stream:
        usage = bool(form.stream_options and form.stream_options.include_usage)
        return await streamed(request, hub, ask, shape, usage=usage)
    return await answered(request, hub, ask, shape)


@router.post("/chat/completions", response_model=ChatCompletion, responses=streams())
async def chat(form: ChatForm, request: Request, hub: Hub, who: Generating) -> Response:
    """Answer a chat, by the base or by a user's assembled model."""
    ask = await chat_ask(form, who, hub)
    shape = ChatShape(form.model, logprobs=bool(form.logprobs))
    if form.stream:
        usage = bool(form.stream_options and form.stream_options.include_usage)
        return await streamed(request, hub, ask, shape, usage=usage)
    return await answered(request, hub, ask, shape)


@router.get("/models", response_model=ModelList)
async def models(
    hub: Hub,
    who: Generating,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(max_length=256)] = None,
) -> Any:
    """The base, and the assembled models that the token may use; sorted, a page at a time."""
    card = await hub.card()
    there = await hub.backend.users(who.tenant)
    usable = there if ANYBODY in who.users else sorted(set(there) & set(who.users))
    # In the order of the users' names, with the base first.
    names = [card.name, *(f"user:{user}" for user in usable)]
    if after is not None and after != card.name:
        names = [name for name in names[1:] if name > after]
    elif after is not None:
        names = names[1:]
    page = [_model(name, card.created) for name in names[:limit]]
    return {"object": "list", "data": page, "has_more": len(names) > limit}


@router.get("/models/{model}", response_model=Model)
async def model(model: str, hub: Hub, who: Generating) -> Any:
    """One of them."""
    card = await hub.card()
    owner = named_owner(who, model, None, card.name)
    if owner is not None:
        await hub.backend.assembly(owner)  # raises where there is none
    return _model(model, card.created)


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "perpcs"}
