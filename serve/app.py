"""The Ray Serve application: `serve run serve.app:build config=configs/serve/quickstart.yaml key=value …`.

Two deployments: `Http`, which checks tokens and speaks OpenAI's forms, and `Engine`, each replica of which has a base, a
bank of adapters and an engine of its own. Recipes are in a store that all replicas share.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from perpcs.errors import PerpcsError
from perpcs.generate.requests import UnknownUserError
from perpcs.lora.peft_export import PeftFiles
from serve.config import ReplicasConfig, ServeConfig, load_args, reconfigured
from serve.doorman import Doorman, require_loopback
from serve.errors import READABLE
from serve.messages import Ask, Event, ModelCard, Order, Refusal, Summary
from serve.recipes import Owner

log = logging.getLogger(__name__)
T = TypeVar("T")

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "LANCE_LOG": "error",
}
# The paths of requests have users' names in them.
_NO_ACCESS_LOG = {"enable_access_log": False}


def refusing(method: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T | Refusal]]:
    """A method that returns our own errors instead of raising them."""

    @functools.wraps(method)
    async def call(*arguments: Any) -> T | Refusal:
        try:
            return await method(*arguments)
        except PerpcsError as error:
            return refusal(error)

    return call


def refusal(error: PerpcsError) -> Refusal:
    """To be answered. What is no fault of the request is also logged, by its kind: its text may have names in it."""
    if not isinstance(error, (*READABLE, UnknownUserError)):
        log.warning("a request could not be answered: %s", type(error).__name__)
    return Refusal(error)


@ray_serve.deployment
class Engine:
    """One engine replica: `serve.host.Host` behind a handle."""

    def __init__(self, config: ServeConfig) -> None:
        os.environ |= QUIET
        import torch

        from perpcs.train.host import keep_freed_memory
        from serve.host import Host
        from serve.metrics import METRICS

        keep_freed_memory()  # assembly's passes ask for the same large buffers again and again
        torch.set_num_threads(config.engine.threads or max(1, int(config.replicas.cpus)))
        METRICS.use_ray()
        self._started = config
        self._host = Host(config)

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """New defaults and limits, without a restart."""
        self._host.reconfigure(reconfigured(self._started, user_config, deployment="Engine"))

    def check_health(self) -> None:
        """Raises when only a new replica helps."""
        self._host.check_health()

    async def generate(self, ask: Ask) -> AsyncGenerator[list[Event] | Refusal]:
        """See `Host`."""
        try:
            async with aclosing(self._host.generate(ask)) as batches:
                async for batch in batches:
                    yield batch
        except PerpcsError as error:
            yield refusal(error)

    @refusing
    async def card(self) -> ModelCard:
        """See `Host`."""
        return await self._host.card()

    @refusing
    async def assemble(self, order: Order, detail: bool, ticket: str) -> Summary:
        """See `Host`."""
        return await self._host.assemble(order, detail=detail, ticket=ticket)

    @refusing
    async def ticket(self, owner: Owner) -> str:
        """See `Host`."""
        return await self._host.ticket(owner)

    @refusing
    async def progress(self, owner: Owner, ticket: str) -> Summary | None:
        """See `Host`."""
        return await self._host.progress(owner, ticket)

    @refusing
    async def assembly(self, owner: Owner, detail: bool) -> Summary:
        """See `Host`."""
        return await self._host.assembly(owner, detail=detail)

    @refusing
    async def users(self, tenant: str) -> list[str]:
        """See `Host`."""
        return await self._host.users(tenant)

    @refusing
    async def forget(self, owner: Owner) -> None:
        """See `Host`."""
        await self._host.forget(owner)

    @refusing
    async def export(self, owner: Owner) -> PeftFiles:
        """See `Host`."""
        return await self._host.export(owner)

    def __del__(self) -> None:
        host = getattr(self, "_host", None)
        if host is not None:
            host.close()


@ray_serve.deployment
@ray_serve.ingress()
class Http:
    """One replica of the HTTP layer."""

    def __init__(self, config: ServeConfig, engine: DeploymentHandle) -> None:
        from serve.metrics import METRICS
        from serve.remote import listening_hosts

        require_loopback(config, listening_hosts())
        METRICS.use_ray()
        self._started, self._engine = config, engine
        self._app: Any = None

    def __serve_build_asgi_app__(self) -> Any:
        from serve.api.application import build_api
        from serve.remote import RemoteBackend

        self._app = build_api(self._started, RemoteBackend(self._engine))
        return self._app

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """New limits and defaults, without a restart."""
        if self._app is not None:
            changed = reconfigured(self._started, user_config, deployment="Http")
            self._app.state.service.reconfigure(changed)


def build(args: dict[str, Any]) -> Application:
    """The application. args: `config`, a YAML file, and any setting by its full key.

    Raises ConfigError in one line for an unknown key, an impossible value, or tokens that cannot be read.
    """
    config = load_args(args)
    Doorman(config)  # what is wrong with the tokens is said here, not by a replica
    r = config.replicas
    common = {
        "health_check_period_s": r.health_period_s,
        "health_check_timeout_s": r.health_timeout_s,
        "graceful_shutdown_timeout_s": r.drain_s,
        "logging_config": _NO_ACCESS_LOG,
    }
    engine = Engine.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": r.cpus, "num_gpus": r.gpus},
        max_ongoing_requests=r.max_ongoing, max_queued_requests=r.max_queued, **_scaling(r), **common,
    ).bind(config)  # fmt: skip
    bound: Application = Http.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": r.ingress_cpus}, num_replicas=r.ingress,
        max_ongoing_requests=r.max_ongoing * r.max, max_queued_requests=r.max_queued, **common,
    ).bind(config, engine)  # fmt: skip
    return bound


def _scaling(r: ReplicasConfig) -> dict[str, Any]:
    if r.max == r.min:
        return {"num_replicas": r.min}
    return {
        "autoscaling_config": {
            "min_replicas": r.min, "max_replicas": r.max, "target_ongoing_requests": r.target_ongoing,
            "upscale_delay_s": r.upscale_s, "downscale_delay_s": r.downscale_s,
            # Load is looked at over the time after which it counts, several times within it.
            "look_back_period_s": min(r.upscale_s, 30.0), "metrics_interval_s": min(r.upscale_s / 3, 10.0),
        }
    }  # fmt: skip
