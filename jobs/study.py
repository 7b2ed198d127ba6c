"""Several experiments under several seeds, one after the other, then side by side.

python -m jobs.study CONFIG … [key=value …] [--seeds 0 1 2] [--out FOLDER]

Each runs as `jobs.pipeline` does, in <its experiment>/seed-<seed>, with its own report; at the end `jobs.report` compares
them all. After an interruption the same command goes on: what is finished is not run again. One Ray serves all of them.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path

from jobs import pipeline
from jobs.cli import Parser, guarded
from jobs.compare import compare_runs
from jobs.runtime import connect
from perpcs.config import ExperimentConfig, load_config
from perpcs.errors import ConfigError

OUT = "runs/studies/compare"

log = logging.getLogger(__name__)


class _Parser(Parser):
    wanted = "name config files, e.g. {} configs/studies/archetypes.yaml configs/studies/distinct.yaml"


def main(argv: Sequence[str]) -> None:
    """Run what is not finished, then compare. Every config is read before the first one runs."""
    found = _parser().parse_args(argv)
    configs = [text for text in found.configs if "=" not in text]
    overrides = [text for text in found.configs if "=" in text]
    experiments = plan(configs, overrides, seeds=found.seeds)
    with ExitStack() as held:
        for number, cfg in enumerate(experiments, 1):
            log.info("experiment %d of %d: %s", number, len(experiments), cfg.experiment)
            if pipeline.unfinished(cfg):
                held.enter_context(connect(cfg.ray))  # the first one's stays for the others
            pipeline.main(cfg)
    compare_runs([cfg.experiment for cfg in experiments], found.out)


def plan(configs: Sequence[str], overrides: Sequence[str], *, seeds: Sequence[int]) -> list[ExperimentConfig]:
    """Every config under every seed, each in a folder of its own.

    Raises ConfigError for bad configs, settings that a study gives itself, two configs with one folder, and fewer than two
    experiments.
    """
    taken = next((text for text in overrides if text.split("=")[0].strip() in ("seed", "experiment")), None)
    if taken is not None:
        raise ConfigError(f"command line: {taken}: a study gives every run its seed and folder; use --seeds")
    made = []
    for path, seed in product(configs, dict.fromkeys(seeds)):
        folder = load_config(path, overrides).experiment
        made.append(load_config(path, [*overrides, f"seed={seed}", f"experiment={folder}/seed-{seed}"]))
    folders = [cfg.experiment for cfg in made]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise ConfigError(f"experiment: {Path(twice).parent}: two configs have this folder; change one's")
    if len(made) < 2:
        raise ConfigError("command line: one experiment is no study; name more configs, or --seeds 0 1 2")
    return made


def _parser() -> Parser:
    parser = _Parser(
        prog="python -m jobs.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="YAML files, and key=value for all of them"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2"
    )
    parser.add_argument("--out", default=OUT, metavar="FOLDER", help=f"for the comparison (default: {OUT})")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
