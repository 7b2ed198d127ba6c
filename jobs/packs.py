"""The fleet's workers: they load the base once and train packs of users into a pool."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import torch

from jobs.events import EventLog, read_events
from jobs.experiment import Info, stage_info
from jobs.fleet import run_fleet
from jobs.fleet_types import FleetEvent, PackReport, PackWorker
from jobs.loading import open_base, open_pieces, open_prompter, pool_spec
from jobs.memory import peak_memory
from jobs.terminal import fleet_progress
from jobs.todo import missing
from perpcs.assembly.merge import adapter_from_recipe
from perpcs.audit.split import without_held_out
from perpcs.config import ExperimentConfig
from perpcs.config.schema import RayConfig
from perpcs.errors import DataError, StoreError
from perpcs.evaluation.methods import METHODS, recipe_name
from perpcs.lora.bank import Adapter
from perpcs.model.encoder import make_encoder
from perpcs.records import SharerAdapter, User
from perpcs.train.fitting import PackFitter, device_memory, model_planner
from perpcs.train.pack import Passes, UserData
from perpcs.train.sharers import train_own, train_sharers
from storage.layout import Paths
from storage.pool import Pool, pool_exists
from storage.population import read_users
from storage.recipes import RecipeStore

WARM = METHODS["oppu_warm"]
Trained = tuple[list[SharerAdapter], dict[str, str]]
"""(finished adapters, reason by id of the users that could not be trained)."""


class PoolWorker:
    """Trains packs and commits them: `train` gives the finished adapters of users that have examples."""

    _pool: Pool | None = None

    def __init__(self, cfg: ExperimentConfig, paths: Paths, *, uri: str) -> None:
        self.cfg, self.paths, self.uri = cfg, paths, uri
        self.base = open_base(cfg, paths)
        self.prompter = open_prompter(cfg, paths, self.base)
        self.memory = worker_memory(cfg.ray, self.base.model.device)

    def run(self, user_ids: Sequence[str]) -> PackReport:
        """See `jobs.fleet_types.PackWorker`."""
        started = time.monotonic()
        settled, decided = self.settled()
        found = read_users(self.paths.population, [user for user in user_ids if user not in settled])
        users = [self.seen(user) for user in found]
        data = {user.id: UserData(user.id, tuple(self.prompter.history(user))) for user in users}
        failed = {u: "no history item with an output to train on" for u, d in data.items() if not d.examples}
        able = [user for user in users if user.id not in failed]
        with peak_memory(self.base.model.device) as peak:
            adapters, refused = self.train(able, [data[user.id] for user in able]) if able else ([], {})
        trained_at = time.monotonic()
        # Again: a worker that was thought dead may have been faster. Its adapters differ by float noise, and count.
        settled, _ = self.settled()
        if new := [adapter for adapter in adapters if adapter.user_id not in settled]:
            self.pool(new).commit(new, decided=decided)
        return PackReport(
            done=tuple(
                user for user in user_ids if user in settled or user in {adapter.user_id for adapter in new}
            ),
            failed=failed | refused,
            seconds=time.monotonic() - started,
            tokens=trained_tokens([data[adapter.user_id] for adapter in adapters], self.visits),
            commit_seconds=time.monotonic() - trained_at,
            memory=peak.bytes,
        )

    def seen(self, user: User) -> User:
        """What may be used of a user."""
        return user

    @property
    def visits(self) -> int:
        """Item visits of one user's training."""
        raise AssertionError("a subclass knows")

    def train(self, users: Sequence[User], data: Sequence[UserData]) -> Trained:
        """Train users with their data, in packs that fit into memory."""
        raise AssertionError("a subclass trains")

    def fitter(self, batch: int) -> PackFitter:
        """Packs of `batch` items per user and step, within this worker's memory."""
        return PackFitter(
            model_planner(self.base.model, rank=self.cfg.lora.rank, batch=batch, memory=self.memory)
        )

    def settled(self) -> tuple[frozenset[str], int]:
        """(who is in the pool by now, through whomever; the pool's version). Whoever withdraws after that version, while
        they are trained, is not committed.
        """
        if self._pool is None and pool_exists(self.uri):
            self._pool = Pool.open(self.uri)
        return (self._pool.committed(), self._pool.log.version) if self._pool else (frozenset(), 0)

    def pool(self, adapters: Sequence[SharerAdapter]) -> Pool:
        """The pool to commit to; made by the first worker that gets here."""
        keys = bool(adapters[0].history_key.size)
        spec = pool_spec(self.cfg, self.base, keys=keys, history_dim=adapters[0].history_key.size)
        self._pool = Pool.open_or_create(
            self.uri, spec=spec, dtype=self.cfg.pool.dtype if keys else "float32"
        )
        return self._pool


class SharerWorker(PoolWorker):
    """Adapters, gates and keys, for the pool."""

    def __init__(self, cfg: ExperimentConfig, paths: Paths) -> None:
        super().__init__(cfg, paths, uri=paths.pool)
        self.encoder = make_encoder(cfg.select.encoder, self.base.model, self.prompter)
        self.packs = self.fitter(max(cfg.pool.train.batch, cfg.pool.gate.batch))

    def seen(self, user: User) -> User:
        """Without what is held out for an audit."""
        return without_held_out(user, self.cfg.pool.holdout, seed=self.cfg.seed)

    @property
    def visits(self) -> int:
        """See `PoolWorker`."""
        pool = self.cfg.pool
        return pool.train.steps * pool.train.batch + pool.gate.steps * pool.gate.batch

    def train(self, users: Sequence[User], data: Sequence[UserData]) -> Trained:
        """See `PoolWorker`."""
        cfg = self.cfg
        keys = dict(zip((user.id for user in users), self.encoder(users), strict=True))

        def pack(some: Sequence[UserData], passes: Passes) -> list[SharerAdapter]:
            return train_sharers(
                self.base.model, some, cfg.lora, cfg.pool.train, gate=cfg.pool.gate, sketch=cfg.pool.sketch,
                history_keys=np.stack([keys[user.user_id] for user in some]), seed=cfg.seed, passes=passes,
            )  # fmt: skip

        return self.packs.train(data, pack)


class OwnWorker(PoolWorker):
    """One adapter per target and nothing else: OPPU."""

    def __init__(self, cfg: ExperimentConfig, paths: Paths) -> None:
        super().__init__(cfg, paths, uri=paths.own)
        self.packs = self.fitter(cfg.own.batch)

    @property
    def visits(self) -> int:
        """See `PoolWorker`."""
        return self.cfg.own.steps * self.cfg.own.batch

    def train(self, users: Sequence[User], data: Sequence[UserData]) -> Trained:
        """See `PoolWorker`."""
        cfg = self.cfg

        def pack(some: Sequence[UserData], passes: Passes) -> list[SharerAdapter]:
            return train_own(self.base.model, some, cfg.lora, cfg.own, seed=cfg.seed, passes=passes)

        return self.packs.train(data, pack)


class WarmWorker(PoolWorker):
    """One adapter per target, trained from the target's recipe on."""

    def __init__(self, cfg: ExperimentConfig, paths: Paths, *, uri: str, key: str) -> None:
        """key: what the recipes were made under (`jobs.assemble.recipe_key`)."""
        super().__init__(cfg, paths, uri=uri)
        self.packs = self.fitter(cfg.own_warm.batch)
        self.key = key
        version = stage_info(paths, "assemble", wanted_by="train_warm")["pool_version"]
        self.pieces = open_pieces(paths, self.base, version=version, checksums=cfg.pool.checksums)

    @property
    def visits(self) -> int:
        """See `PoolWorker`."""
        return self.cfg.own_warm.steps * self.cfg.own_warm.batch

    def train(self, users: Sequence[User], data: Sequence[UserData]) -> Trained:
        """See `PoolWorker`."""
        cfg, starts = self.cfg, self.starts([user.id for user in users])

        def pack(some: Sequence[UserData], passes: Passes) -> list[SharerAdapter]:
            return train_own(
                self.base.model, some, cfg.lora, cfg.own_warm, seed=cfg.seed, start=starts, passes=passes
            )

        return self.packs.train(data, pack)

    def starts(self, user_ids: Sequence[str]) -> dict[str, Adapter]:
        """The adapters that the users' recipes stand for. Raises StoreError for one that was not made under the key."""
        store, name = RecipeStore(self.paths.recipes), recipe_name(WARM.rule, WARM.merge)
        found = store.of(user_ids, name)
        recipes = {
            user_id: recipe for user_id, recipe in found.items() if recipe.extra.get("key") == self.key
        }
        if missing := [user_id for user_id in user_ids if user_id not in recipes]:
            raise StoreError(
                f"{self.paths.recipes}: {len(missing)} targets, e.g. {missing[0]!r}, have no {name} recipe of today's "
                "settings; run python -m jobs.assemble with oppu_warm in evaluate.methods"
            )
        return {user_id: adapter_from_recipe(recipes[user_id], self.pieces) for user_id in user_ids}


def worker_memory(cfg: RayConfig, device: torch.device) -> int:
    """Bytes that one worker plans with: as configured, or its share of the device."""
    if cfg.memory:
        return int(cfg.memory * 2**30)
    share = cfg.gpus if device.type == "cuda" else cfg.cpus / (os.cpu_count() or 1)
    return device_memory(device, share=min(1.0, share or 1.0))


def trained_tokens(data: Sequence[UserData], visits: int) -> int:
    """Tokens without padding of `visits` item visits by every user."""
    return sum(
        round(visits * sum(len(e.prompt) + len(e.label) for e in d.examples) / len(d.examples)) for d in data
    )


def train_missing(
    cfg: ExperimentConfig, paths: Paths, *, what: str, uri: str, wanted: Callable[[], Sequence[str]],
    worker: Callable[[], PackWorker], pack: int,
) -> Info:  # fmt: skip
    """Train what is missing with the fleet. Raises DataError when users failed, after all others are committed."""
    todo = partial(missing, uri, wanted)
    with EventLog(paths) as events, fleet_progress(what, len(todo())) as show:

        def on_event(event: FleetEvent) -> None:
            events.append({"stage": what, "pool": _name(uri), **asdict(event)})
            show(event)

        report = run_fleet(worker, todo=todo, pack=pack, cfg=cfg.ray, on_event=on_event, stage=what)
    if report.failed:
        user, reason = next(iter(report.failed.items()))
        raise DataError(
            f"{what}: {len(report.failed)} users could not be trained, e.g. {user}: {reason}; the others are committed"
        )
    return {"mark": Pool.open(uri).header.id, "users": len(wanted()), **spent(paths, what, uri)}


def spent(paths: Paths, what: str, uri: str) -> Info:
    """Seconds and tokens of all packs of a stage over every run that worked on this pool, and the most memory of any."""
    packs = [
        e
        for e in read_events(paths)
        if e.get("stage") == what
        and e.get("kind") in ("pack", "late")
        and e.get("pool", _name(uri)) == _name(uri)
    ]
    seconds, tokens = (sum(e[name] for e in packs) for name in ("seconds", "tokens"))
    memory = max((e.get("memory", 0) for e in packs), default=0)
    return {"pack_seconds": round(seconds, 3), "tokens": tokens, "peak_memory": memory}


def _name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]
