"""Answers that are kept between evaluations, so that another row costs that row alone.

One file per method in `answers/`, with a key over everything that the answers depend on; under another key they are
made anew. Only what the model wrote is kept: questions and golds are in the experiment's population, which is as private.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jobs.experiment import stage_digest, stage_info
from perpcs.config import as_flat_dict, digest
from perpcs.evaluation.methods import Method
from perpcs.evaluation.runner import Answers, asked
from perpcs.records import Recipe
from storage.files import exists, join, read_json, write_json
from storage.layout import Paths

if TYPE_CHECKING:
    from jobs.evaluate import Evaluator


def stage_of(method: Method) -> str:
    """The stage that made the adapters that a method uses; '' for recipes, which are looked at one by one, for what is
    made of recipes, whose pool is looked at, and for none."""
    return {"own": "train_own", "kind": f"train_{method.kind}", "joint": "train_joint"}.get(method.uses, "")


@dataclass(frozen=True)
class Kept:
    """Answers, and the most bytes in use at once while they were made."""

    answers: Answers
    memory: int


def answers_key(evaluator: Evaluator, method: Method) -> str:
    """Changes with the base, the prompts, the questions, and the adapters that the method uses; titles do not count."""
    cfg, paths = evaluator.cfg, evaluator.paths
    how = {k: v for k, v in asdict(method).items() if k not in ("name", "title", "role", "doc")}
    adapters = ""
    if method.uses == "recipe":
        adapters = recipes_digest(evaluator.recipe(method, user.id) for user in evaluator.users)
    if method.uses == "warm":
        adapters = stage_info(paths, "train_warm", wanted_by="evaluate")["mark"]
    if stage := stage_of(method):
        adapters = stage_digest(paths, stage, wanted_by="evaluate")
    return digest(
        {
            "method": how,
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


def kept_answers(evaluator: Evaluator, method: Method, key: str) -> Kept | None:
    """The answers that were kept under this key, or None."""
    path = _path(evaluator.paths, method)
    if not exists(path):
        return None
    kept = read_json(path)
    pairs = [(u, q) for u in evaluator.users for q in asked(u, limit=evaluator.cfg.evaluate.max_queries)]
    if kept.get("key") != key or len(kept["answers"]) != len(pairs):
        return None
    answers = Answers(
        user_ids=tuple(user.id for user, _ in pairs),
        query_ids=tuple(query.id for _, query in pairs),
        predictions=tuple(kept["answers"]),
        golds=tuple(query.gold for _, query in pairs),
    )
    return Kept(answers, kept["memory"])


def keep_answers(paths: Paths, method: Method, found: Kept, key: str) -> None:
    """Write a method's answers, users and queries in order."""
    kept = {"key": key, "memory": found.memory, "answers": list(found.answers.predictions)}
    write_json(_path(paths, method), kept)


def _path(paths: Paths, method: Method) -> str:
    return join(paths.answers, f"{method.name}.json")
