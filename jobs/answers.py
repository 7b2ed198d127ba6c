"""Answers that are kept between evaluations, so that another row costs that row alone.

One file per method and slice of targets in `answers/`, with a key over everything that the answers depend on; under
another key they are made anew. What the model wrote is kept, and the golds' losses where they were asked for: questions
and golds are in the experiment's population, which is as private.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jobs.experiment import stage_digest, stage_info
from perpcs.config import as_flat_dict, digest
from perpcs.evaluation.methods import Method
from perpcs.evaluation.runner import asked
from perpcs.records import Recipe
from storage.files import exists, join, read_json, write_json
from storage.layout import Paths

if TYPE_CHECKING:
    from jobs.evaluator import Evaluator


def stage_of(method: Method) -> str:
    """The stage that made the adapters that a method uses; '' for recipes, which are looked at one by one, for what is
    made of recipes, whose pool is looked at, and for none."""
    return {"own": "train_own", "kind": f"train_{method.kind}", "joint": "train_joint"}.get(method.uses, "")


@dataclass(frozen=True)
class Kept:
    """What a method wrote, users and queries in order, and the most bytes in use at once while it did."""

    predictions: tuple[str, ...]
    memory: int
    losses: tuple[float, ...] = ()
    """Of the golds; none where they were never asked for."""


def answers_key(evaluator: Evaluator, method: Method) -> str:
    """Changes with the base, the prompts, the questions, and the adapters that the method uses; titles do not count."""
    cfg, paths = evaluator.cfg, evaluator.paths
    how = {k: v for k, v in asdict(method).items() if k not in ("name", "title", "role", "doc")}
    adapters = ""
    if method.uses == "recipe":
        whose = (evaluator.whose(method, user.id) for user in evaluator.users)
        adapters = recipes_digest(evaluator.recipe(method, user_id) for user_id in whose)
    if method.uses == "warm":
        adapters = stage_info(paths, "train_warm", wanted_by="evaluate")["mark"]
    if stage := stage_of(method):
        adapters = stage_digest(paths, stage, wanted_by="evaluate")
    return digest(
        {
            "method": how,
            "targets": digest({"ids": [user.id for user in evaluator.users]}),
            "adapters": adapters,
            "base": stage_digest(paths, "adapt", wanted_by="evaluate"),
            "prompt": as_flat_dict(cfg.prompt),
            "lora": as_flat_dict(cfg.lora),
            "retrieve": cfg.evaluate.retrieve if method.shows == "history" else 0,
            "decoding": cfg.evaluate.decoding,
            "max_queries": cfg.evaluate.max_queries,
            "seed": cfg.seed,
        }
    )


def recipes_digest(recipes: Iterable[Recipe]) -> str:
    """Hash of what the recipes stand for: pieces, weights, merge and pool version."""
    found = hashlib.sha256()
    for r in recipes:
        found.update(f"{r.user_id}\n{r.fingerprint} {r.pool_version} {r.merge} {r.weight_scale!r}\n".encode())
        found.update(r.ordinals.tobytes() + b"/" + r.codes.tobytes())
    return found.hexdigest()[:16]


def kept_answers(evaluator: Evaluator, method: Method, number: int, key: str) -> Kept | None:
    """The answers of a slice that were kept under this key, or None."""
    path = _path(evaluator.paths, method, number)
    if not exists(path):
        return None
    kept, limit = read_json(path), evaluator.cfg.evaluate.max_queries
    if kept.get("key") != key or len(kept["answers"]) != sum(
        len(asked(user, limit=limit)) for user in evaluator.users
    ):
        return None
    return Kept(tuple(kept["answers"]), kept["memory"], tuple(kept.get("losses", ())))


def keep_answers(paths: Paths, method: Method, number: int, *, kept: Kept, key: str) -> None:
    """Write a method's answers to a slice, users and queries in order."""
    found = {"key": key, "memory": kept.memory, "answers": list(kept.predictions)}
    if kept.losses:
        found["losses"] = list(kept.losses)
    write_json(_path(paths, method, number), found)


def _path(paths: Paths, method: Method, number: int) -> str:
    return join(paths.answers, f"{method.name}.{number}.json" if number else f"{method.name}.json")
