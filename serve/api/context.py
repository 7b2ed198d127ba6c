"""What the routes share, and how they get at it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path, Request
from starlette.requests import ClientDisconnect

from serve.api.problems import Problem, forbidden, no_such_model
from serve.backend import Backend
from serve.config import ServeConfig
from serve.doorman import Doorman
from serve.identity import USER, Identity, Scope
from serve.messages import ModelCard
from serve.recipes import Owner

T = TypeVar("T")
READY_S = 5.0
"""A question that is not answered by then is given up, so that one that got lost is asked again."""


@dataclass
class Service:
    """One process of the HTTP layer."""

    config: ServeConfig
    backend: Backend
    doorman: Doorman
    background: set[asyncio.Task[Any]] = field(default_factory=set)
    """Assemblies that nobody waits for."""
    _card: ModelCard | None = None
    _ready_at: float = float("-inf")
    _ready: asyncio.Future[ModelCard] | None = None

    async def card(self) -> ModelCard:
        """What is served; asked for once."""
        if self._card is None:
            self._card = await self.backend.card()
        return self._card

    async def ready(self) -> None:
        """Returns when an engine has answered within the last second. Anybody may ask: all who do share one question, and
        its answer, also a bad one, for a second.

        Raises what the backend raises, TimeoutError where it says nothing for READY_S seconds."""
        if self._ready is None or (self._ready.done() and time.monotonic() - self._ready_at > 1):
            self._ready = asyncio.ensure_future(asyncio.wait_for(self.backend.card(), READY_S))
            self._ready.add_done_callback(self._answered)
        await asyncio.shield(self._ready)

    def _answered(self, ready: asyncio.Future[ModelCard]) -> None:
        self._ready_at = time.monotonic()
        if not ready.cancelled():
            ready.exception()  # somebody has looked: those who asked may be gone

    def reconfigure(self, config: ServeConfig) -> None:
        """Take over new limits and defaults."""
        self.config = self.doorman.config = config


async def service_of(request: Request) -> Service:
    """The process's service. Asynchronous, as every dependency here: FastAPI runs others in threads."""
    found: Service = request.app.state.service
    return found


def caller(scope: Scope) -> Callable[[Request], Awaitable[Identity]]:
    """A dependency: the request's identity, if its token has the scope."""

    async def find(request: Request) -> Identity:
        identity: Identity = request.scope["state"]["identity"]
        if not identity.may(scope):
            raise forbidden(f"the token does not have the scope {scope}")
        return identity

    return find


UserName = Annotated[
    str, Path(description="The user's name within the token's tenant.", pattern=f"^{USER.pattern}$")
]
Hub = Annotated[Service, Depends(service_of)]


def owner_of(identity: Identity, user: str) -> Owner:
    """The user as an owner in the token's tenant. Raises Problem 403 when the token may not act for them."""
    if not identity.may_be(user):
        raise forbidden("the token may not act for this user")
    return Owner(identity.tenant, user)


def named_owner(identity: Identity, model: str, user: str | None, base: str) -> Owner | None:
    """Whose model a request asks for, by its fields `model` and `user`; None: the base. Raises Problem."""
    named = model.removeprefix("user:") if model.startswith("user:") else None
    if named is None and model != base:
        raise no_such_model()
    if named is not None and user is not None and named != user:
        raise Problem(
            400, "user: names another user than model; leave one out", param="user", code="conflict"
        )
    name = named if named is not None else user
    if name is None:
        return None
    if not USER.fullmatch(name):
        raise no_such_model()
    return owner_of(identity, name)


async def unless_gone(request: Request, work: Awaitable[T], *, seconds: float) -> T:
    """Wait for `work`; it is cancelled when the client goes away (ClientDisconnect) or time is up (Problem 504)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise Problem(504, f"not done within {seconds:g} seconds", type="server_error", code="timeout")
    finally:
        for left in (task, gone):
            left.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
