"""Stage 7b: train the targets' own adapters from their assembly on, a few steps (`own_warm`), where a row asks for it.

Finished means committed: run again after any interruption, only what is missing is trained. The adapters depend on
the assembly: other recipes, because of other settings or another pool, are another pool in `own_warm/`, and when that
is complete, the earlier ones are removed. So nothing stays that was made of a sharer who has withdrawn.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial

from jobs.assemble import recipe_key
from jobs.cli import stage_main
from jobs.experiment import Info, Stage, stage_info
from jobs.packs import WARM, WarmWorker, train_missing
from jobs.preflight import check_match
from perpcs.config import ExperimentConfig, digest
from perpcs.errors import StoreError
from storage.drop import drop_pool
from storage.files import join, walk
from storage.layout import Paths
from storage.population import read_ids


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Train the targets' adapters that are missing, then remove those of other recipes."""
    key = warm_key(cfg, paths)
    uri = join(paths.own_warm, key)
    info = train_missing(
        cfg, paths, what="warm adapters", uri=uri, wanted=partial(read_ids, paths.population, "targets"),
        worker=partial(WarmWorker, cfg, paths, uri=uri, key=recipe_key(cfg, paths, WARM.rule)),
        pack=cfg.own_warm.pack,
    )  # fmt: skip
    for other in {name for name in _pools(paths) if name != key}:
        drop_pool(join(paths.own_warm, other))
    return {**info, "key": key}


def warm_key(cfg: ExperimentConfig, paths: Paths) -> str:
    """What the adapters depend on: the recipes that they start from, and their own training."""
    training = {name: value for name, value in asdict(cfg.own_warm).items() if name != "pack"}
    return digest(
        {
            "recipes": recipe_key(cfg, paths, WARM.rule),
            "merge": WARM.merge,
            "lora": asdict(cfg.lora),
            "own_warm": training,
            "seed": cfg.seed,
        }
    )


def warm_pool(cfg: ExperimentConfig, paths: Paths) -> str:
    """Where the adapters are. Raises StoreError when they are not there, or were made of other recipes."""
    key = stage_info(paths, "train_warm", wanted_by="evaluate")["key"]
    if key != warm_key(cfg, paths):
        raise StoreError(
            f"{paths.own_warm}: its adapters start from other recipes than those of today; run python -m jobs.train_warm"
        )
    return join(paths.own_warm, key)


def _pools(paths: Paths) -> set[str]:
    """Names of the pools in `own_warm/`."""
    root = f"{paths.own_warm}/"
    return {path.partition(root)[2].split("/")[0] for path, _ in walk(paths.own_warm)}


STAGE = Stage(
    "train_warm", "own adapters from the assembly", run, needs=("assemble",), settings=("seed", "lora", "own_warm"),
    makes="own_warm", grows=True, check=check_match,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
