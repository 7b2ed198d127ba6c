"""The whole flow, from users' histories to a report: ingest, adapt, select, train, index, assemble, evaluate, report.

Each stage is also a program of its own, python -m jobs.<stage>. A finished stage is not run again; after an
interruption the same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from jobs import (
    adapt,
    assemble,
    evaluate,
    index,
    ingest,
    report,
    select_sharers,
    train_ia3,
    train_joint,
    train_own,
    train_prompt_tuning,
    train_sharers,
    train_warm,
)
from jobs.claim import claim
from jobs.cli import stage_main
from jobs.experiment import Stage
from jobs.runtime import connect
from perpcs.config import ExperimentConfig, to_yaml
from perpcs.evaluation.methods import get_methods
from storage.files import exists, read_text, write_text
from storage.layout import Paths

KINDS = {"prompt_tuning": train_prompt_tuning, "ia3": train_ia3}


def stages_of(cfg: ExperimentConfig) -> list[Stage]:
    """What this experiment's methods need, in order."""
    methods = get_methods(cfg.evaluate.methods)
    before = [ingest, adapt, select_sharers, train_sharers]
    if any(method.uses == "own" for method in methods):
        before.append(train_own)
    before += [KINDS[kind] for kind in KINDS if any(method.kind == kind for method in methods)]
    after = [train_joint] if any(method.uses == "joint" for method in methods) else []
    warm = [train_warm] if any(method.uses == "warm" for method in methods) else []
    return [module.STAGE for module in [*before, index, *after, assemble, *warm, evaluate]]


def unfinished(cfg: ExperimentConfig) -> bool:
    """Whether there is anything left to run but the report."""
    return not all(stage.finished(cfg) for stage in stages_of(cfg))


def main(cfg: ExperimentConfig) -> None:
    """Run every stage that is not finished."""
    stages, paths = stages_of(cfg), Paths.of(cfg.experiment)
    with ExitStack() as held:
        todo = unfinished(cfg)
        if todo:
            held.enter_context(connect(cfg.ray))
        for stage in stages:
            stage.refuse(cfg)
        if todo:
            held.enter_context(claim(paths))  # not before: it writes
        for stage in stages:
            stage.do(cfg)
    _keep_config(cfg)
    report.main(cfg)


def _keep_config(cfg: ExperimentConfig) -> None:
    """Beside the results: the settings that they were made with."""
    path, text = Paths.of(cfg.experiment).config, to_yaml(cfg)
    if not exists(path) or read_text(path) != text:
        write_text(path, text)


if __name__ == "__main__":
    sys.exit(stage_main(main, description=__doc__))
