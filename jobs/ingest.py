"""Stage 1: read or make the population and write it to the experiment."""

from __future__ import annotations

import sys

from jobs.cli import stage_main
from jobs.experiment import Info, Stage
from jobs.preflight import check_task
from perpcs.config import ExperimentConfig
from perpcs.population.splits import load_population
from storage.layout import Paths
from storage.population import write_population


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Write the population; returns the users per split."""
    population = load_population(cfg.population, seed=cfg.seed)
    write_population(paths.population, population)
    return {name: len(population.split(name)) for name in ("base", "candidates", "targets")}


STAGE = Stage(
    "ingest", "population", run, settings=("population", "seed"), makes="population", costly=True, check=check_task,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
