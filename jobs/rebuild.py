"""After a withdrawal: assemble the recipes anew that use pieces of sharers who left, from the users' histories.

Only those recipes are made again, by the rule that made them and with the pool as it is now; all others stay as
they are. Users whose histories are not in the experiment are named: `python -m jobs.pool mend` needs no history.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Iterable

from jobs.assemble import assemble_recipes
from jobs.claim import claim
from jobs.cli import stage_main
from jobs.experiment import Info, read_marker
from jobs.loading import open_assembler, open_base
from jobs.runtime import run_remote
from perpcs.config import ExperimentConfig
from perpcs.records import Recipe
from storage.layout import Paths
from storage.pool import Pool
from storage.population import read_ids, read_users
from storage.recipes import RecipeStore
from storage.withdraw import stale_recipes

log = logging.getLogger(__name__)


def main(cfg: ExperimentConfig) -> None:
    """Rebuild in one worker, if there is anything to rebuild."""
    paths = Paths.of(cfg.experiment)
    read_marker(paths, "train_sharers", wanted_by="rebuild")
    stale = stale_recipes(Pool.open(paths.pool), RecipeStore(paths.recipes).all())
    known = set(read_ids(paths.population, "targets"))
    here = [recipe for recipe in stale if recipe.user_id in known]
    elsewhere = sorted({recipe.user_id for recipe in stale} - known)
    if elsewhere:
        log.warning(
            "no history of %d users here, e.g. %s: assemble them where it is, or use python -m jobs.pool mend",
            len(elsewhere), elsewhere[0],
        )  # fmt: skip
    if not here:
        log.info("rebuild: no recipe uses pieces of a sharer who withdrew; nothing to do")
        return
    with claim(paths):  # a pipeline that assembles at the same time would have the last word on some of them
        run_remote(rebuild, cfg, paths, by_method(here), cfg=cfg.ray)


def by_method(recipes: Iterable[Recipe]) -> dict[str, list[str]]:
    """{recipe name: user ids}, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for recipe in recipes:
        found[recipe.method].append(recipe.user_id)
    return dict(found)


def rebuild(cfg: ExperimentConfig, paths: Paths, users_of: dict[str, list[str]]) -> Info:
    """Assemble the named users' recipes anew over the newest version of the pool; how many."""
    assembler = open_assembler(cfg, paths, open_base(cfg, paths))
    store = RecipeStore(paths.recipes)
    for name, user_ids in users_of.items():
        rule, merge = name.split("/")
        assemble_recipes(assembler, rule, merge, read_users(paths.population, user_ids), store=store)
    return {"pool_version": assembler.pieces.version, "recipes": sum(map(len, users_of.values()))}


if __name__ == "__main__":
    sys.exit(stage_main(main, description=__doc__))
