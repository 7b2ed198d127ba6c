"""The engine replicas as the HTTP layer's backend, through Ray Serve."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from ray.serve.handle import DeploymentHandle

from perpcs.errors import PerpcsError
from perpcs.generate.requests import BusyError
from perpcs.lora.peft_export import PeftFiles
from serve.errors import ReplicaLostError
from serve.messages import Ask, Event, ModelCard, Order, Refusal, Summary
from serve.metrics import PREFIX
from serve.recipes import Owner

T = TypeVar("T")
_SCRAPE_S = 3.0


class RemoteBackend:
    """A `serve.backend.Backend`."""

    def __init__(self, engine: DeploymentHandle) -> None:
        self._engine, self._stream = engine, engine.options(stream=True)

    async def generate(self, ask: Ask) -> AsyncGenerator[list[Event]]:
        """See `Host`; a caller that ends the iteration cancels the work on the replica."""
        batches = self._stream.generate.remote(ask)
        finished = False
        try:
            async for batch in batches:
                yield _raised(batch)
            finished = True
        except Exception as error:
            finished = True
            raise translated(error) from None
        finally:
            if not finished:
                batches.cancel()

    async def card(self) -> ModelCard:
        """See `Host`."""
        return await _result(self._engine.card.remote())

    async def assemble(self, order: Order, *, detail: bool = False, ticket: str = "") -> Summary:
        """See `Host`."""
        return await _result(self._engine.assemble.remote(order, detail, ticket))

    async def ticket(self, owner: Owner) -> str:
        """See `Host`."""
        return await _result(self._engine.ticket.remote(owner))

    async def progress(self, owner: Owner, ticket: str) -> Summary | None:
        """See `Host`."""
        return await _result(self._engine.progress.remote(owner, ticket))

    async def assembly(self, owner: Owner, *, detail: bool = False) -> Summary:
        """See `Host`."""
        return await _result(self._engine.assembly.remote(owner, detail))

    async def users(self, tenant: str) -> list[str]:
        """See `Host`."""
        return await _result(self._engine.users.remote(tenant))

    async def forget(self, owner: Owner) -> None:
        """See `Host`. The other replicas find out from the store."""
        await _result(self._engine.forget.remote(owner))

    async def export(self, owner: Owner) -> PeftFiles:
        """See `Host`."""
        return await _result(self._engine.export.remote(owner))

    async def exposition(self) -> bytes:
        """Metrics of all replicas on all nodes, from the agents of Ray that collect them (every ten seconds)."""
        pages = await asyncio.gather(
            *(asyncio.to_thread(_page, url) for url in await asyncio.to_thread(_agents))
        )
        return "".join(merged(pages)).encode()


def merged(pages: list[str]) -> list[str]:
    """Our lines of several pages, each metric's description once."""
    seen: set[str] = set()
    lines = []
    for line in (line for page in pages for line in page.splitlines(keepends=True)):
        if PREFIX not in line.partition("{")[0]:
            continue
        if line.startswith("#"):
            if line in seen:
                continue
            seen.add(line)
        lines.append(line)
    return lines


def _agents() -> list[str]:
    import ray

    return [
        f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics"
        for n in ray.nodes()
        if n["Alive"]
    ]


def _page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=_SCRAPE_S) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""  # a node that is gone has nothing to tell


async def _result(response: Awaitable[T | Refusal]) -> T:
    try:
        return _raised(await response)
    except Exception as error:
        raise translated(error) from None


def translated(error: Exception) -> Exception:
    """What a replica raised, as itself; and what Ray says of a replica that died or a queue that is full."""
    from ray.exceptions import RayActorError, RayTaskError
    from ray.serve.exceptions import BackPressureError

    if isinstance(error, RayTaskError) and isinstance(error.cause, PerpcsError):
        return error.cause
    if isinstance(error, BackPressureError):
        return BusyError("too many requests are waiting; try again later")
    if isinstance(error, RayActorError):
        return ReplicaLostError("the replica that worked on this has ended; send the request again")
    return error


def _raised(answer: T | Refusal) -> T:
    if isinstance(answer, Refusal):
        raise answer.error
    return answer


def listening_hosts() -> list[str]:
    """Where Ray Serve's proxies listen; empty where that cannot be learnt (requests are checked one by one anyway)."""
    from ray.serve.context import _get_global_client

    try:
        config: Any = _get_global_client().http_config
        return [str(config.host)] if config.host else []
    except Exception:  # not a public interface
        return []
