"""Stage 7: make the targets' recipes with every rule that an evaluated method uses. Nothing is trained."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.cli import stage_main
from jobs.experiment import Info, Stage, stage_digest, stage_info
from jobs.loading import open_assembler, open_base
from jobs.memory import peak_memory
from jobs.preflight import check_methods
from jobs.spread import slices, spread
from perpcs.assembly.assembler import Assembler, settings_of
from perpcs.assembly.rules import make_recipe
from perpcs.config import ExperimentConfig, as_flat_dict, digest
from perpcs.evaluation.methods import get_methods, needed_rules, recipe_name
from perpcs.records import User
from storage.layout import Paths
from storage.population import read_split, read_users
from storage.recipes import RecipeStore

log = logging.getLogger(__name__)


PASSES = 4
"""Of `assembly.items_per_pass` history items in a slice."""


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Assemble in as many tasks as there are workers; returns seconds per user by recipe name."""
    version = stage_info(paths, "index", wanted_by="assemble")["pool_version"]
    users = read_split(paths.population, "targets")
    parts = slices(
        [user.id for user in users], [len(user.known) for user in users],
        most=PASSES * cfg.assembly.items_per_pass,
    )  # fmt: skip
    found = spread(assemble_slices, cfg, paths, version, parts=parts, cfg=cfg.ray)
    return {
        "pool_version": version,
        "targets": len(users),
        "seconds_per_user": {
            name: round(
                sum(s[name].seconds * len(p) for s, p in zip(found, parts, strict=True)) / len(users), 5
            )
            for name in found[0]
        },
        "peak_memory": {name: max(spent[name].memory for spent in found) for name in found[0]},
    }


def assemble_slices(
    cfg: ExperimentConfig, paths: Paths, pool_version: int, parts: Sequence[Sequence[str]]
) -> list[dict[str, Spent]]:
    """Every needed rule over each slice of target ids; for each, by recipe name, what it took."""
    base = open_base(cfg, paths)
    assembler = open_assembler(cfg, paths, base, version=pool_version)
    store, rules = RecipeStore(paths.recipes), needed_rules(get_methods(cfg.evaluate.methods))
    found = []
    for part in parts:
        users, spent = read_users(paths.population, part), {}
        for rule, merge in rules:
            key, name = recipe_key(cfg, paths, rule), recipe_name(rule, merge)
            before = made_before(store, name, users, key)
            spent[name] = before or assemble_recipes(assembler, rule, merge, users, store=store, key=key)
        found.append(spent)
    return found


@dataclass(frozen=True)
class Spent:
    """What making one rule's recipes took."""

    seconds: float
    """Per user."""
    memory: int
    """Most bytes in use at once."""


def recipe_key(cfg: ExperimentConfig, paths: Paths, rule: str) -> str:
    """What a rule's recipes depend on: the pool and all before it, the prompts, and the settings of the rule itself."""
    return digest(
        {
            "index": stage_digest(paths, "index", wanted_by="assemble"),
            "pool_version": stage_info(paths, "index", wanted_by="assemble")["pool_version"],
            "prompt": as_flat_dict(cfg.prompt),
            "seed": cfg.seed,
            "encoder": cfg.select.encoder,
            "settings": settings_of(rule, cfg.assembly),
        }
    )


def made_before(store: RecipeStore, name: str, users: Sequence[User], key: str) -> Spent | None:
    """What it took when all users' recipes were made under the same key; None when some were not."""
    found = store.of([user.id for user in users], name)
    if not all(user.id in found and found[user.id].extra.get("key") == key for user in users):
        return None
    extra = found[users[0].id].extra
    return Spent(float(extra["seconds"]), int(extra["memory"]))


def assemble_recipes(
    assembler: Assembler, rule: str, merge: str, users: Sequence[User], *, store: RecipeStore, key: str = ""
) -> Spent:
    """Store one rule's recipes of some users, marked with their key and with what they took."""
    name, started = recipe_name(rule, merge), time.monotonic()
    with peak_memory(assembler.base.model.device) as peak:
        picks = assembler.picks(rule, merge, users)
    seconds = round((time.monotonic() - started) / len(users), 5)
    extra = {"key": key, "seconds": str(seconds), "memory": str(peak.bytes)} if key else {}
    recipes = [
        make_recipe(u.id, name, p, assembler.pieces, merge=merge) for u, p in zip(users, picks, strict=True)
    ]
    store.put([replace(recipe, extra=extra) for recipe in recipes])
    log.info("assembled %d targets with %s: %.0f ms per target", len(users), name, 1000 * seconds)
    return Spent(seconds, peak.bytes)


STAGE = Stage(
    "assemble",
    "assembly",
    run,
    needs=("index",),
    settings=("seed", "prompt", "assembly", "evaluate.methods", "select.encoder"),
    makes="recipes",
    check=check_methods,
)

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
