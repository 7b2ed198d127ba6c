"""Answers as one JSON object, or as server-sent events, just as OpenAI sends them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from perpcs.errors import PerpcsError
from serve.api.context import Service, unless_gone
from serve.api.problems import Problem, internal, of
from serve.api.shapes import Json, Shape, Usage
from serve.messages import Ask, Done, Event

Batches = AsyncGenerator[list[Event]]


async def whole(request: Request, service: Service, ask: Ask) -> list[Event]:
    """All events of an answer. A client that goes away, and time that is up, cancel it."""
    work = _collect(service.backend.generate(ask))
    return await unless_gone(request, work, seconds=service.config.limits.request_seconds)


async def answered(request: Request, service: Service, ask: Ask, shape: Shape) -> Response:
    """One JSON object."""
    return JSONResponse(shape.answer(await whole(request, service, ask), ask.n))


async def streamed(
    request: Request, service: Service, ask: Ask, shape: Shape, *, usage: bool
) -> StreamingResponse:
    """Server-sent events. What is wrong before the first token is an ordinary error, with its status."""
    seconds = service.config.limits.request_seconds
    until = asyncio.get_running_loop().time() + seconds
    events = _generator(service.backend.generate(ask))
    try:
        first = await unless_gone(request, anext(events), seconds=seconds)
    except BaseException:
        await events.aclose()
        raise
    body = _lines(_chained(first, events, until), ask, shape, usage=usage)
    return StreamingResponse(body, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _collect(batches: AsyncIterator[list[Event]]) -> list[Event]:
    async with aclosing(_generator(batches)) as found:
        return [event async for batch in found for event in batch]


async def _generator(batches: AsyncIterator[list[Event]]) -> Batches:
    close = getattr(batches, "aclose", None)
    try:
        async for batch in batches:
            yield batch
    finally:
        if close is not None:
            await close()


async def _chained(first: list[Event], rest: Batches, until: float) -> Batches:
    async with aclosing(rest):
        yield first
        async with asyncio.timeout_at(until):
            async for batch in rest:
                yield batch


async def _lines(batches: Batches, ask: Ask, shape: Shape, *, usage: bool) -> AsyncGenerator[str]:
    counted = Usage(ask.n)
    async with aclosing(batches):
        for choice in range(len(ask.prompts) * ask.n):
            for beginning in shape.first(choice):
                yield _line(shape.chunk([beginning]))
        try:
            async for batch in batches:
                for event in batch:
                    if isinstance(event, Done):
                        counted.add(event)
                    yield _line(shape.chunk([shape.delta(event)]))
        except Exception as error:
            # The status is sent already: an error object is what OpenAI's clients look for in a stream.
            yield _line({"error": _problem(error).body.model_dump()})
            return
        if usage:
            yield _line(shape.chunk([], counted.json()))
        yield "data: [DONE]\n\n"


def _problem(error: Exception) -> Problem:
    if isinstance(error, TimeoutError):
        return Problem(504, "not done in time", type="server_error", code="timeout")
    return of(error) if isinstance(error, PerpcsError) else internal(error)


def _line(value: Json | dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
