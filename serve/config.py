"""Every setting of the service, strict as those of an experiment: `load(path, overrides)` -> ServeConfig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from perpcs.assembly.merge import Merge
from perpcs.config import as_flat_dict, load_config
from perpcs.config.checks import Problems, above_zero, at_least
from perpcs.errors import ConfigError

RuleName = Literal[
    "reranked_fitted", "reranked", "gradient_global", "gradient_global_fitted", "gradient", "gradient_fitted", "gate",
    "gate_batches", "retrieval",
]  # fmt: skip


@dataclass(frozen=True)
class JwtConfig:
    """Signed tokens of an identity provider, besides the file of tokens."""

    key_file: str = ""
    """File with the secret (HS256) or the public key in PEM form; empty: signed tokens are refused."""
    algorithm: Literal["HS256", "RS256", "EdDSA"] = "EdDSA"
    """The only one that is accepted; what a token says of itself does not matter."""
    audience: str = "perpcs"
    """Must be in the token's `aud`."""
    issuer: str = ""
    """Must be the token's `iss`; empty: not looked at."""


@dataclass(frozen=True)
class AuthConfig:
    """Who may ask."""

    tokens: str = ""
    """File of hashed tokens (`python -m serve.tokens`), read again when it changes; empty: EXPERIMENT/tokens.json."""
    open_on_loopback: bool = False
    """Development only: no token is asked for, everybody is the tenant `dev`, and only requests from this machine
    are answered."""
    jwt: JwtConfig = field(default_factory=JwtConfig)


@dataclass(frozen=True)
class LimitsConfig:
    """What one request, and one token, may ask for. A token may have a rate and a concurrency of its own."""

    body_bytes: int = 1 << 20
    """Largest request body."""
    history_items: int = 2000
    """Most history items in one request."""
    history_characters: int = 500_000
    """Most characters of all history items together."""
    prompt_characters: int = 100_000
    """Most characters of a prompt; how many tokens fit is the engine's matter."""
    max_tokens: int = 256
    """Most tokens of one answer, and the chat's default."""
    choices: int = 8
    """Most answers of one request: `n` times the number of prompts."""
    requests_per_second: float = 20.0
    """Per token, on average."""
    burst: int = 40
    """Requests that a token may send at once."""
    concurrent: int = 32
    """Requests of one token under way."""
    request_seconds: float = 120.0
    """A request that takes longer is ended."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(
            self, 1, "body_bytes", "history_items", "history_characters", "prompt_characters", "max_tokens",
            "choices", "burst", "concurrent",
        )  # fmt: skip
        yield from above_zero(self, "requests_per_second", "request_seconds")


@dataclass(frozen=True)
class AssembleConfig:
    """Defaults and limits of assembly."""

    rule: RuleName = "reranked_fitted"
    """How pieces are chosen, where a request names nothing (docs/method.md). The fitted rules train a few numbers per
    user; `reranked` needs forward passes only, besides the gradient key's one backward pass."""
    merge: Merge = "svd"
    """How pieces become one adapter, where a request does not say: by `svd` it has the rank of a sharer's and costs a step
    no more than that, where `concat`, exact, has as many times the rank as there are pieces."""
    top_k: int = 0
    """Pieces per projection, where a request does not say; 0: as many as in the experiment (its `assembly.top_k`, or
    its `assembly.shortlist`, of which `reranked_fitted` keeps all)."""
    max_top_k: int = 8
    """Largest top-k that may be asked for; with `concat` the bank's rank grows with it."""
    sharer_names: bool = False
    """Show sharers by their id in the pool. They are people: otherwise a number stands for each."""
    waiting: int = 64
    """Histories that may wait for one replica."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 0, "top_k")
        yield from at_least(self, 1, "max_top_k", "waiting")
        if self.rule.endswith("_fitted") and self.merge == "average":
            yield "merge", f"{self.rule} fits weights of the exact sum; use svd or concat"
        if self.max_top_k < self.top_k:
            yield "max_top_k", f"must be at least assembly.top_k ({self.top_k})"


@dataclass(frozen=True)
class EngineSection:
    """One replica's engine."""

    slots: int = 64
    """Users whose adapters are in the bank at once."""
    rank: int = 0
    """Largest rank of an adapter in the bank; 0: room for `assembly.max_top_k` pieces joined by `concat`. For `svd` and
    `average` the pool's own rank is enough, with slots as many times smaller; `concat` of more is then refused."""
    requests: int = 64
    """Requests in one batch."""
    cache_tokens: int = 16384
    """Tokens of all requests under way together."""
    step_tokens: int = 512
    """Most tokens in one step."""
    waiting: int = 512
    """Requests that may wait; the next is answered 429."""
    loaders: int = 2
    """Threads that read adapters."""
    piece_cache_bytes: int = 256 << 20
    """Pieces kept in memory after they have been read."""
    device: str = ""
    """auto, cpu, cuda, cuda:N; empty: as the experiment was made."""
    threads: int = 0
    """torch threads; 0: as many as the replica has CPUs."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 1, "slots", "requests", "cache_tokens", "step_tokens", "waiting", "loaders")
        yield from at_least(self, 0, "rank", "piece_cache_bytes", "threads")


@dataclass(frozen=True)
class ReplicasConfig:
    """Ray Serve's part: how many engine replicas, and when one is replaced."""

    min: int = 1
    """Engine replicas at least."""
    max: int = 1
    """Engine replicas at most; above `min` Serve scales by load."""
    target_ongoing: float = 16.0
    """Requests per replica that scaling aims at."""
    upscale_s: float = 15.0
    """Seconds of more load than that before a replica is added."""
    downscale_s: float = 300.0
    """Seconds of less before one is drained and taken away. A replica takes a while to start, so be slow."""
    cpus: float = 1.0
    """CPUs per replica."""
    gpus: float = 0.0
    """GPUs per replica."""
    max_ongoing: int = 128
    """Requests that one replica works on; Serve queues the others."""
    max_queued: int = 512
    """Requests that Serve queues per ingress replica; the next is answered 429."""
    health_period_s: float = 5.0
    """Seconds between health checks; three failures replace the replica."""
    health_timeout_s: float = 10.0
    """Seconds after which a health check has failed."""
    drain_s: float = 30.0
    """Seconds that a replica which is to end may take to finish its requests."""
    ingress: int = 1
    """Replicas of the HTTP layer; limits per token are shared out among them."""
    ingress_cpus: float = 0.5
    """CPUs per replica of the HTTP layer."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 1, "min", "max_ongoing", "max_queued", "ingress")
        yield from at_least(self, 0, "gpus")
        yield from above_zero(
            self,
            "cpus",
            "target_ongoing",
            "upscale_s",
            "downscale_s",
            "health_period_s",
            "health_timeout_s",
            "drain_s",
            "ingress_cpus",
        )
        if self.max < self.min:
            yield "max", f"must be at least replicas.min ({self.min})"


@dataclass(frozen=True)
class StoreConfig:
    """Recipes that the service makes."""

    folder: str = ""
    """Folder or URI that all replicas share; empty: EXPERIMENT/served."""
    poll_s: float = 2.0
    """A replica drops adapters that were replaced or forgotten on another within this time. (They are never used
    in between: every request looks at the store.)"""
    tidy_s: float = 900.0
    """Between clean-ups: rows that newer ones replaced, and what a crash has left."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from above_zero(self, "poll_s", "tidy_s")


@dataclass(frozen=True)
class ServeConfig:
    """The root: one file in configs/serve/."""

    experiment: str = "runs/quickstart"
    """A finished experiment: its base, pool and indexes are served."""
    model: str = ""
    """Name of the base model in the API; empty: the experiment folder's name."""
    auth: AuthConfig = field(default_factory=AuthConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    assembly: AssembleConfig = field(default_factory=AssembleConfig)
    engine: EngineSection = field(default_factory=EngineSection)
    replicas: ReplicasConfig = field(default_factory=ReplicasConfig)
    store: StoreConfig = field(default_factory=StoreConfig)

    def check(self) -> Problems:
        """Impossible values."""
        if not self.experiment.strip():
            yield "experiment", "must be a folder"
        if ":" in self.model:
            yield "model", "must not hold a colon; `user:` names users' models"


S = TypeVar("S", LimitsConfig, AssembleConfig)
CHANGEABLE = ("limits.", "assembly.")
"""Settings that `user_config` may change without a restart."""
USED_BY = {
    "Http": ("limits.", "assembly.rule", "assembly.merge", "assembly.top_k", "assembly.max_top_k"),
    "Engine": ("assembly.waiting", "assembly.sharer_names", "assembly.max_top_k"),
}
"""Which of them a deployment looks at."""


def load(path: str | None, overrides: Sequence[str] = ()) -> ServeConfig:
    """The service that a YAML file and `key=value` overrides describe. Raises ConfigError as `load_config` does."""
    return load_config(path, overrides, schema=ServeConfig)


def load_args(args: Mapping[str, Any]) -> ServeConfig:
    """From the arguments of `serve run serve.app:build config=FILE key=value …`.

    Raises ConfigError for an unknown key, or a value that is no text, number or truth value.
    """
    rest = {key: value for key, value in args.items() if key != "config"}
    path = args.get("config")
    return load(None if path is None else str(path), [_override(key, value) for key, value in rest.items()])


def reconfigured(config: ServeConfig, user_config: Mapping[str, Any], *, deployment: str) -> ServeConfig:
    """`config` with the keys of a deployment's `user_config`, nested or dotted. Raises ConfigError for one that needs a
    restart, or that this deployment does not look at."""
    changes = dict(_dotted(user_config, ""))
    for key in changes:
        if not key.startswith(CHANGEABLE):
            raise ConfigError(
                f"user_config: {key}: cannot change without a restart; only limits and assembly can"
            )
        if not key.startswith(USED_BY[deployment]):
            others = [name for name in USED_BY if key.startswith(USED_BY[name])]
            hint = f"give it to {others[0]}" if others else f"there are {', '.join(USED_BY[deployment])}"
            raise ConfigError(f"user_config: {key}: has no effect on {deployment}; {hint}")
    kept = [_override(k, v) for k, v in as_flat_dict(config).items() if k.startswith(CHANGEABLE)]
    changed = load(None, [*kept, *(_override(key, value) for key, value in changes.items())])
    for key in ("limits.max_tokens", "assembly.max_top_k"):
        part, name = key.split(".")
        most, wanted = getattr(getattr(config, part), name), getattr(getattr(changed, part), name)
        if wanted > most:
            raise ConfigError(
                f"user_config: {key}: {wanted} is above {most}, for which the engines were made; restart"
            )
    return replace(config, limits=changed.limits, assembly=changed.assembly)


def _dotted(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += (
            _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
        )
    return found


def _override(key: str, value: Any) -> str:
    if isinstance(value, bool):
        value = str(value).lower()
    if not isinstance(value, str | int | float):
        raise ConfigError(
            f"arguments: {key}: {value!r} is no text or number; give each setting by its full key"
        )
    return f"{key}={value}"
