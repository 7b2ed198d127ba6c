"""Stage 4: train the sharers' adapters, gates and keys, many users per step and worker, into the pool.

Finished means committed: run again after any interruption, only what is missing is trained.
"""

from __future__ import annotations

import sys
from functools import partial

from jobs.cli import stage_main
from jobs.experiment import Info, Stage
from jobs.packs import SharerWorker, train_missing
from jobs.preflight import check_match
from jobs.todo import selected
from perpcs.config import ExperimentConfig
from storage.layout import Paths


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Train the selected sharers that the pool lacks."""
    return train_missing(
        cfg, paths, what="sharers", uri=paths.pool, wanted=partial(selected, paths),
        worker=partial(SharerWorker, cfg, paths), pack=cfg.pool.train.pack,
    )  # fmt: skip


STAGE = Stage(
    "train_sharers",
    "sharers",
    run,
    needs=("select_sharers",),
    settings=("seed", "lora", "pool", "select.encoder"),
    makes="pool",
    costly=True,
    grows=True,
    check=check_match,
)

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
