"""What the HTTP layer needs of the engine side: `serve.host.Host` in this process, or replicas through Ray Serve."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from perpcs.lora.peft_export import PeftFiles
from serve.messages import Ask, Event, ModelCard, Order, Summary
from serve.recipes import Owner


class Backend(Protocol):
    """See `serve.host.Host` for each."""

    async def card(self) -> ModelCard:
        """What is served."""
        ...

    def generate(self, ask: Ask) -> AsyncIterator[list[Event]]:
        """Events as they come."""
        ...

    async def assemble(self, order: Order, *, detail: bool = False, ticket: str = "") -> Summary:
        """Make and store a recipe."""
        ...

    async def ticket(self, owner: Owner) -> str:
        """Name an assembly that is about to be asked for, so that its state can be looked at."""
        ...

    async def progress(self, owner: Owner, ticket: str) -> Summary | None:
        """How far that assembly is; None for an unknown name."""
        ...

    async def assembly(self, owner: Owner, *, detail: bool = False) -> Summary:
        """The owner's recipe."""
        ...

    async def users(self, tenant: str) -> list[str]:
        """Users of a tenant with a recipe."""
        ...

    async def forget(self, owner: Owner) -> None:
        """Forget an owner."""
        ...

    async def export(self, owner: Owner) -> PeftFiles:
        """The owner's adapter."""
        ...

    async def exposition(self) -> bytes:
        """Metrics of all processes of the service, for a Prometheus scraper."""
        ...
