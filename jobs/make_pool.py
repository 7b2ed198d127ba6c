"""The stages that make a pool and its indexes, and no more: ingest, adapt, select, train the sharers, index.

What serving and sweeps need of an experiment; `python -m jobs.pipeline` goes on from there.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from jobs import adapt, index, ingest, select_sharers, train_sharers
from jobs.claim import claim
from jobs.cli import stage_main
from jobs.runtime import connect
from perpcs.config import ExperimentConfig
from storage.layout import Paths

STAGES = [module.STAGE for module in (ingest, adapt, select_sharers, train_sharers, index)]


def main(cfg: ExperimentConfig) -> None:
    """Run every one of these stages that is not finished."""
    if all(stage.finished(cfg) for stage in STAGES):
        return
    with ExitStack() as held:
        held.enter_context(connect(cfg.ray))
        for stage in STAGES:
            stage.refuse(cfg)
        held.enter_context(claim(Paths.of(cfg.experiment)))  # not before: it writes
        for stage in STAGES:
            stage.do(cfg)


if __name__ == "__main__":
    sys.exit(stage_main(main, description=__doc__))
