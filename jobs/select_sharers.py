"""Stage 3: choose which candidates become sharers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import numpy as np

from jobs.cli import stage_main
from jobs.experiment import Info, Stage
from jobs.loading import open_base, open_prompter
from jobs.preflight import check_encoder
from jobs.spread import slices, spread
from perpcs.config import ExperimentConfig
from perpcs.model.encoder import make_encoder
from perpcs.records import User
from perpcs.selection import select_sharers
from storage.files import write_json
from storage.layout import Paths
from storage.population import read_split, read_users

ITEMS = 4096
"""History items in a slice."""


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Choose here, by embeddings that are made in as many tasks as there are workers; write the chosen ids."""
    users = read_split(paths.population, "candidates")
    chosen = select_sharers(users, cfg.select, embed=partial(embeddings, cfg, paths), seed=cfg.seed)
    write_json(paths.selection, {"sharers": list(chosen)})
    return {"candidates": len(users), "sharers": len(chosen)}


def embeddings(cfg: ExperimentConfig, paths: Paths, users: Sequence[User]) -> np.ndarray:
    """[U, d] history embeddings of users of the population."""
    parts = slices([user.id for user in users], [len(user.known) for user in users], most=ITEMS)
    return np.concatenate(spread(embed_slices, cfg, paths, parts=parts, cfg=cfg.ray))


def embed_slices(cfg: ExperimentConfig, paths: Paths, parts: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Embeddings of each slice of user ids."""
    base = open_base(cfg, paths)
    encoder = make_encoder(cfg.select.encoder, base.model, open_prompter(cfg, paths, base))
    return [encoder(read_users(paths.population, part)) for part in parts]


STAGE = Stage(
    "select_sharers", "sharer selection", run, needs=("adapt",), settings=("seed", "select"), makes="selection",
    costly=True, check=check_encoder,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
