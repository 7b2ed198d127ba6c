"""From a history to a stored recipe: one at a time per replica, beside the engine."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perpcs.assembly.assembler import Assembler, choosing, pieces_chosen
from perpcs.assembly.merge import merged_rank
from perpcs.assembly.rules import make_recipe
from perpcs.assembly.select import sharer_weights
from perpcs.config.schema import AssemblyConfig
from perpcs.errors import DataError
from perpcs.generate.requests import BusyError
from perpcs.records import Recipe, User
from serve.errors import ForgottenError
from serve.forgotten import Forgotten
from serve.loading import Opened
from serve.messages import Order, Summary
from serve.pool import ServedPool
from serve.recipes import Owner, ServedRecipes, versioned

PHASES = ("wait", "open", "select", "store")
NOBODY = "of this request"


@dataclass(frozen=True)
class Parts:
    """What assembly works with."""

    opened: Opened
    pool: ServedPool
    recipes: ServedRecipes
    forgotten: Forgotten


class AssemblyDesk:
    """Takes orders from any thread and works on them one after the other, so that a burst of histories does not take
    the processor from the answers."""

    def __init__(self, parts: Parts, *, waiting: int) -> None:
        self.parts, self.waiting = parts, waiting
        self._count = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="perpcs-assembly")

    @property
    def busy(self) -> int:
        """Orders that wait or are worked on."""
        return self._count

    def submit(self, order: Order, sign: str) -> Future[tuple[Recipe, dict[str, float]]]:
        """The recipe with seconds by phase, later; ForgottenError when the owner was forgotten since `sign` (see
        `Forgotten`). Raises BusyError when too many wait."""
        if self._count > self.waiting:
            raise BusyError(f"{self._count} histories are waiting here; try again later")
        self._count += 1
        future = self._worker.submit(self._work, order, sign, time.perf_counter())
        future.add_done_callback(self._done)
        return future

    def close(self) -> None:
        """Drop what waits."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _done(self, _: Future[Any]) -> None:
        self._count -= 1

    def _work(self, order: Order, sign: str, since: float) -> tuple[Recipe, dict[str, float]]:
        marks = [since, time.perf_counter()]
        pieces = self.parts.pool.now(order.owner.tenant)
        marks.append(time.perf_counter())
        cfg = self.parts.opened.experiment
        assembler = Assembler(
            self.parts.opened.assembly, self.parts.opened.prompter, pieces,
            config=choosing(order.rule, cfg.assembly, order.top_k), encoder=cfg.select.encoder, seed=cfg.seed,
        )  # fmt: skip
        # Nobody's name, so that neither a log line nor an error has it; the same history gives the same model.
        picks = assembler.picks(order.rule, order.merge, [User(NOBODY, order.items)])[0]
        recipe = make_recipe(order.owner.id, order.rule, picks, pieces, merge=order.merge)
        marks.append(time.perf_counter())
        recipe = versioned(recipe, _facts(order))
        self._store(order.owner, recipe, sign)
        marks.append(time.perf_counter())
        return recipe, dict(zip(PHASES, np.diff(marks).tolist(), strict=True))

    def _store(self, owner: Owner, recipe: Recipe, sign: str) -> None:
        # Before: nothing may be seen of it. After: whoever forgot the owner meanwhile did not see this row.
        self._refuse_forgotten(owner, sign)
        self.parts.recipes.put(recipe)
        try:
            self._refuse_forgotten(owner, sign)
        except ForgottenError:
            self.parts.recipes.take_back(recipe)
            raise

    def _refuse_forgotten(self, owner: Owner, sign: str) -> None:
        if self.parts.forgotten.since(owner, sign):
            raise ForgottenError("the user was forgotten while the assembly was under way; nothing is kept")


@dataclass(frozen=True)
class Room:
    """What the bank was made for."""

    pieces: int
    """Per projection (`assembly.max_top_k`)."""
    rank: int
    """Of an adapter."""
    piece_rank: int
    """Of a piece: the pool's."""


def settled(order: Order, made: AssemblyConfig, room: Room) -> Order:
    """The order with its number of pieces, where it says none that of the experiment. Raises DataError for what the bank
    has no room for."""
    top_k = order.top_k or pieces_chosen(order.rule, made)
    if top_k > room.pieces:
        raise DataError(
            f"top_k: {order.rule} chooses {top_k} pieces per projection here, more than this service's {room.pieces}; "
            f"ask for top_k={room.pieces}"
        )
    if merged_rank(order.merge, rank=room.piece_rank, k=top_k) > room.rank:
        raise DataError(
            f"merge: {top_k} pieces joined by {order.merge} have rank {top_k * room.piece_rank}, more than this "
            f"service's {room.rank}; use svd"
        )
    return replace(order, top_k=top_k)


def _facts(order: Order) -> dict[str, str]:
    return {
        "rule": order.rule,
        "top_k": str(order.top_k),
        "items": str(len(order.items)),
        "created": str(int(time.time())),
    }


def summary(
    recipe: Recipe, names: tuple[str, ...], projections: tuple[Any, ...], *, owner: Owner, detail: bool
) -> Summary:
    """A recipe as the API shows it. names: what stands for each sharer, by ordinal; detail: every projection's picks."""
    weights = sharer_weights(recipe, len(names))
    order = np.argsort(-weights, kind="stable")
    found: Summary = {
        "object": "assembly",
        "user": owner.user,
        "model": f"user:{owner.user}",
        "version": recipe.extra["version"],
        "created": int(recipe.extra["created"]),
        "rule": recipe.extra["rule"],
        "merge": recipe.merge,
        "top_k": int(recipe.extra["top_k"]),
        "history_items": int(recipe.extra["items"]),
        "pool_version": recipe.pool_version,
        "bytes": recipe.nbytes,
        "sharers": [
            {"sharer": names[i], "weight": round(float(weights[i]), 6)} for i in order if weights[i] > 0
        ],
    }
    if detail:
        found["projections"] = [
            {"name": p.name, "layer": p.layer, "kind": p.kind, "picks": _picks(recipe, j, names)}
            for j, p in enumerate(projections)
        ]
    return found


def _picks(recipe: Recipe, projection: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    row = zip(recipe.ordinals[projection].tolist(), recipe.weights[projection].tolist(), strict=True)
    return [{"sharer": names[ordinal], "weight": round(weight, 6)} for ordinal, weight in row if weight]
