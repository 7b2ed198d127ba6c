"""Stage 5: train the targets' own adapters (OPPU), the reference that assembly is measured against.

Finished means committed: run again after any interruption, only what is missing is trained.
"""

from __future__ import annotations

import sys
from functools import partial

from jobs.cli import stage_main
from jobs.experiment import Info, Stage
from jobs.packs import OwnWorker, train_missing
from jobs.preflight import check_match
from perpcs.config import ExperimentConfig
from storage.layout import Paths
from storage.population import read_ids


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Train the targets' adapters that are missing."""
    return train_missing(
        cfg, paths, what="own adapters", uri=paths.own, wanted=partial(read_ids, paths.population, "targets"),
        worker=partial(OwnWorker, cfg, paths), pack=cfg.own.pack,
    )  # fmt: skip


STAGE = Stage(
    "train_own", "own adapters", run, needs=("adapt",), settings=("seed", "lora", "own"), makes="own",
    costly=True, grows=True, check=check_match,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
