"""The control of one LoRA for everybody: trained once, on all sharers' histories together, personal to nobody.

It gets what the sharers got in all: as many steps as one sharer (`pool.train.steps`), with the items of all of them in
every step (`pool.train.batch` times the sharers), in one order that mixes them.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import torch

from jobs.cli import stage_main
from jobs.experiment import Info, Stage, stage_info
from jobs.loading import open_base, open_prompter
from jobs.preflight import check_match
from jobs.runtime import run_remote
from perpcs.config import ExperimentConfig
from perpcs.lora.peft_export import export_peft
from perpcs.lora.peft_files import CONFIG, WEIGHTS
from perpcs.train.pack import Passes, UserData
from perpcs.train.sharers import train_own
from storage.files import join, write_bytes
from storage.layout import Paths
from storage.pool import Pool
from storage.population import read_users

NAME = "all sharers"
MOST_TOKENS = 8192
"""Of one forward pass; a step is cut into as many as it needs."""


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Train in one worker."""
    version = stage_info(paths, "index", wanted_by="train_joint")["pool_version"]
    return run_remote(train, cfg, paths, version, cfg=cfg.ray)


def train(cfg: ExperimentConfig, paths: Paths, pool_version: int) -> Info:
    """Train on whoever is in the pool at this version, and write the adapter in PEFT's format."""
    started = time.monotonic()
    base = open_base(cfg, paths)
    prompter = open_prompter(cfg, paths, base)
    view = Pool.open(paths.pool).view(pool_version)
    sharers = read_users(paths.population, [view.ids[i] for i in np.flatnonzero(view.live)])
    data = UserData(NAME, tuple(e for user in sharers for e in prompter.history(user)))
    budget = replace(cfg.pool.train, batch=cfg.pool.train.batch * len(sharers), stop_loss=0.0)
    made = train_own(base.model, [data], cfg.lora, budget, seed=cfg.seed, passes=Passes(tokens=MOST_TOKENS))[
        0
    ]
    adapter = {name: (torch.from_numpy(p.a), torch.from_numpy(p.b)) for name, p in made.pieces.items()}
    scale = cfg.lora.alpha / cfg.lora.rank
    files = export_peft(adapter, scale=scale, base=paths.base, fingerprint=base.fingerprint)
    write_bytes(join(paths.joint, WEIGHTS), files.weights)
    write_bytes(join(paths.joint, CONFIG), files.config)
    return {
        "sharers": len(sharers),
        "steps": budget.steps,
        "items_per_step": budget.batch,
        "loss": round(made.loss, 4),
        "train_seconds": round(time.monotonic() - started, 2),
    }


STAGE = Stage(
    "train_joint", "one LoRA for all", run, needs=("index",), settings=("seed", "lora", "pool.train"),
    makes="joint", check=check_match,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
