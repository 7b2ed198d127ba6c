"""The outermost layer: token, limits per token, size of the body, metrics. Plain ASGI, so that streams pass as they are."""

from __future__ import annotations

import time
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.context import Service
from serve.api.problems import Problem, forbidden, internal, unauthorized
from serve.metrics import METRICS

OPEN = ("/healthz", "/readyz", "/openapi.json")
"""Answered without a token; none tells anything about users. `open_paths` adds static pages."""
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class Gate:
    """Wraps the application."""

    def __init__(
        self, app: ASGIApp, service: Service, throttle: Any, open_paths: tuple[str, ...] = ()
    ) -> None:
        self.app, self.service, self.throttle = app, service, throttle
        self.open_paths = (*OPEN, *open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "websocket":  # there are none, and none gets in
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = _Call(scope, send)
        try:
            await self._enter(call, receive)
        except ClientDisconnect:
            call.status = call.status or 499
        except Problem as problem:
            await call.answer(problem)
        except Exception as error:
            await call.answer(internal(error))
        finally:
            call.count()

    async def _enter(self, call: _Call, receive: Receive) -> None:
        headers = Headers(scope=call.scope)
        client = call.scope.get("client")
        if not self.service.doorman.lets_in(client[0] if client else None, headers):
            raise forbidden("without tokens only this machine is answered, under its own name")
        body = _Body(receive, self.service.config.limits.body_bytes)
        body.check(headers.get("content-length"))
        if call.scope["path"] in self.open_paths:
            await self.app(call.scope, body, call.send)
            return
        identity = self.service.doorman.identify(headers.get("authorization"))
        if identity is None:
            raise unauthorized()
        refused = self.throttle.enter(
            identity.token_id, self.service.doorman.allowance(identity), time.monotonic()
        )
        if refused is not None:
            METRICS.limited.add(limit=refused.limit)
            problem = Problem(
                429, f"the token is over its {refused.limit} limit", type="rate_limit_error",
                code="rate_limit_exceeded",
            )  # fmt: skip
            raise problem.retry_after(refused.retry_after_s)
        call.scope.setdefault("state", {})["identity"] = identity
        try:
            await self.app(call.scope, body, call.send)
        finally:
            self.throttle.leave(identity.token_id)


class _Call:
    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = scope, send
        self.status = 0
        self.started = time.perf_counter()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], *_HEADERS]}
        await self._send(message)

    async def answer(self, problem: Problem) -> None:
        if not self.status:
            await problem.response()(self.scope, _nothing, self.send)

    def count(self) -> None:
        # The pattern, not the path: paths have names in them.
        route = getattr(self.scope.get("route"), "path", "other")
        METRICS.requests.add(route=route, status=str(self.status or 499))
        METRICS.request_seconds.observe(time.perf_counter() - self.started, route=route)


class _Body:
    """Receives no more than the allowed number of bytes."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._seen = receive, most, 0

    def check(self, length: str | None) -> None:
        if length is not None and length.isdecimal() and int(length) > self._most:
            raise self._problem()

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._most:
            raise self._problem()
        return message

    def _problem(self) -> Problem:
        return Problem(413, f"the body is larger than {self._most} bytes", code="body_too_large")


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
