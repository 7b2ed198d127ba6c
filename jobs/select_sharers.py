"""Stage 3: choose which candidates become sharers."""

from __future__ import annotations

import sys

from jobs.cli import stage_main
from jobs.experiment import Info, Stage
from jobs.loading import open_base, open_prompter
from jobs.preflight import check_encoder
from jobs.runtime import run_remote
from perpcs.config import ExperimentConfig
from perpcs.model.encoder import make_encoder
from perpcs.selection import select_sharers
from storage.files import write_json
from storage.layout import Paths
from storage.population import read_split


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Choose in one worker, which embeds the histories."""
    return run_remote(choose, cfg, paths, cfg=cfg.ray)


def choose(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Write the chosen ids."""
    base = open_base(cfg, paths)
    encoder = make_encoder(cfg.select.encoder, base.model, open_prompter(cfg, paths, base))
    users = read_split(paths.population, "candidates")
    chosen = select_sharers(users, cfg.select, embed=encoder, seed=cfg.seed)
    write_json(paths.selection, {"sharers": list(chosen)})
    return {"candidates": len(users), "sharers": len(chosen)}


STAGE = Stage(
    "select_sharers", "sharer selection", run, needs=("adapt",), settings=("seed", "select"), makes="selection",
    costly=True, check=check_encoder,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
