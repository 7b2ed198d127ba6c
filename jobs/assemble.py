"""Stage 7: make the targets' recipes with every rule that an evaluated method uses. Nothing is trained."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

from jobs.cli import stage_main
from jobs.experiment import Info, Stage, stage_info
from jobs.loading import open_assembler, open_base
from jobs.memory import peak_memory
from jobs.preflight import check_methods
from jobs.runtime import run_remote
from perpcs.assembly.assembler import Assembler
from perpcs.assembly.rules import make_recipe
from perpcs.config import ExperimentConfig
from perpcs.evaluation.methods import get_methods, needed_rules, recipe_name
from perpcs.records import User
from storage.layout import Paths
from storage.population import read_split
from storage.recipes import RecipeStore

log = logging.getLogger(__name__)


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Assemble in one worker."""
    return run_remote(
        assemble_all,
        cfg,
        paths,
        stage_info(paths, "index", wanted_by="assemble")["pool_version"],
        cfg=cfg.ray,
    )


def assemble_all(cfg: ExperimentConfig, paths: Paths, pool_version: int) -> Info:
    """Every needed rule over all targets; returns seconds per user by recipe name."""
    base = open_base(cfg, paths)
    assembler = open_assembler(cfg, paths, base, version=pool_version)
    users = read_split(paths.population, "targets")
    store = RecipeStore(paths.recipes)
    seconds, memory = {}, {}
    for rule, merge in needed_rules(get_methods(cfg.evaluate.methods)):
        name = recipe_name(rule, merge)
        with peak_memory(base.model.device) as peak:
            seconds[name] = assemble_recipes(assembler, rule, merge, users, store=store)
        memory[name] = peak.bytes
    return {
        "pool_version": pool_version,
        "targets": len(users),
        "seconds_per_user": seconds,
        "peak_memory": memory,
    }


def assemble_recipes(
    assembler: Assembler, rule: str, merge: str, users: Sequence[User], *, store: RecipeStore
) -> float:
    """Store one rule's recipes of some users; seconds per user."""
    name, started = recipe_name(rule, merge), time.monotonic()
    picks = assembler.picks(rule, merge, users)
    store.put(
        [make_recipe(u.id, name, p, assembler.pieces, merge=merge) for u, p in zip(users, picks, strict=True)]
    )
    seconds = round((time.monotonic() - started) / len(users), 5)
    log.info("assembled %d targets with %s: %.0f ms per target", len(users), name, 1000 * seconds)
    return seconds


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
