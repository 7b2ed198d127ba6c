"""Stage 6: build the FAISS indexes of the pool, one per projection and kind of key. A cache: it can be deleted."""

from __future__ import annotations

import sys

from jobs.cli import stage_main
from jobs.experiment import Info, Stage
from perpcs.assembly.pieces import KeyKind
from perpcs.config import ExperimentConfig
from storage.index import identity
from storage.lance_pieces import LancePieces
from storage.layout import Paths
from storage.pool import Pool, pool_exists

KEYS: tuple[KeyKind, ...] = ("gate", "gradient")


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Build what is missing; returns the pool version that the later stages use."""
    view = Pool.open(paths.pool).view()
    pieces = LancePieces(view, paths.indexes)
    for key in KEYS:
        pieces.index(key).build()
    return {
        "mark": identity(view),
        "pool_version": view.version,
        "sharers": len(view),
        "indexes": len(KEYS) * len(view.spec.projections),
    }


def members(paths: Paths) -> str:
    """Who is in the pool now: after a withdrawal, indexes and all that comes after are made again."""
    return identity(Pool.open(paths.pool).view()) if pool_exists(paths.pool) else ""


STAGE = Stage("index", "index", run, needs=("train_sharers",), makes="indexes", mark=members)

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
