"""Do keys see the user? For gate and gradient keys: is a user known again by half of a history, and whom do scores favour?

python -m jobs.key_signal EXPERIMENT

Prints one line per key, with plain prompts and with a profile in every prompt (which a pool was trained with only under
prompt.profile=true). Reads a finished experiment and changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from jobs.cli import Parser, guarded
from jobs.experiment import read_marker
from jobs.loading import open_base, open_pieces, open_prompter
from jobs.runtime import run_remote
from perpcs.assembly.pieces import KeyKind, Pieces
from perpcs.config import ExperimentConfig, load_config
from perpcs.errors import ConfigError, DataError
from perpcs.evaluation.user_signal import UserSignal, base_gate_queries, user_signal
from perpcs.keys.gradient import gradient_queries, make_sketches
from perpcs.model.base import Base
from perpcs.population.prompts import Context, Encoded
from perpcs.population.synthetic import similarity_matrix
from perpcs.report.tables import markdown
from perpcs.report.wording import number
from storage.layout import Paths
from storage.population import read_split, read_users

HEADER = [
    "Prompts, key",
    "own half recognised",
    "common to all users",
    "with likeness",
    "centred, with likeness",
]


def signals(cfg: ExperimentConfig, paths: Paths) -> list[tuple[str, UserSignal]]:
    """(prompts and key, what it tells) of every key over the targets' histories. DataError for a user with one item."""
    base, users = open_base(cfg, paths), read_split(paths.population, "targets")
    pieces, prompter = open_pieces(paths, base), open_prompter(cfg, paths, base)
    truth = None
    if cfg.population.source == "synthetic":
        truth = similarity_matrix(users, read_users(paths.population, list(pieces.ids)))
    found = []
    plain = [] if cfg.prompt.profile else [("plain", Context())]
    for name, context in (*plain, ("profile", Context(profile=True))):
        items = [[e for e in prompter.history(user, context=context) if e.label] for user in users]
        if any(len(some) < 2 for some in items):
            raise DataError("a target has fewer than 2 history items; halves cannot be compared")
        halves = [some[half::2] for half in (0, 1) for some in items]
        for key in ("gate", "gradient"):
            found.append((f"{name}, {key}", _signal(base, pieces, key, halves, truth)))
    return found


def _signal(
    base: Base, pieces: Pieces, key: KeyKind, halves: list[list[Encoded]], truth: np.ndarray | None
) -> UserSignal:
    projections, users = pieces.spec.projections, len(halves) // 2
    if key == "gate":
        queries = base_gate_queries(base.model, halves)
    else:
        made = gradient_queries(base.model, halves, make_sketches(projections, pieces.spec.sketch))
        queries = np.stack([made[p.name].cpu().numpy() for p in projections], axis=1)
    both = np.asarray((queries[:users] + queries[users:]) / 2, np.float32)
    scores = [
        pieces.scores(key, p.name, np.ascontiguousarray(both[:, j, : p.d_in if key == "gate" else None]))
        for j, p in enumerate(projections)
    ]
    return user_signal(queries[:users], queries[users:], np.mean(scores, axis=0), truth)


def main(argv: Sequence[str]) -> None:
    """Print the table of one experiment."""
    parser = _Parser(
        prog="python -m jobs.key_signal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="folder of a finished experiment")
    folder = parser.parse_args(argv).experiment
    config = Path(folder) / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{folder}: has no config.yaml; name the folder of a finished experiment")
    cfg = load_config(config, [f"experiment={folder}"])
    paths = Paths.of(cfg.experiment)
    read_marker(paths, "train_sharers", wanted_by="key_signal")
    found = run_remote(signals, cfg, paths, cfg=cfg.ray)
    Console(soft_wrap=True).print(markdown(HEADER, [_line(*row) for row in found]), highlight=False)


def _line(name: str, found: UserSignal) -> list[str]:
    return [
        name,
        *map(number, (found.recognised, found.common, found.likeness, found.likeness_centred)),
    ]


class _Parser(Parser):
    wanted = "name an experiment folder, e.g. {} runs/quickstart"


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
