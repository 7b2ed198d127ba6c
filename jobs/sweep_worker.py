"""What runs in a Tune trial: a unit of many settings, trained where that is missing, then evaluated a batch at a time."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from ray import tune

from jobs.relay import telling
from jobs.runtime import in_this_process, threads_of
from jobs.sweep_engine import Engine
from jobs.sweep_plan import Trial, plan_points
from jobs.sweep_train import is_ready, make_ready, state_of
from perpcs.config import ExperimentConfig
from perpcs.errors import PerpcsError
from perpcs.sweep.config import Sweep
from perpcs.sweep.space import Values
from storage.files import join, write_json
from storage.trials import TrialTable

VALUE = "value"
"""What a Tune trial reports: the metric's mean over seeds; of a proposal's settings the best."""


@dataclass(frozen=True)
class Orders:
    """What all workers of a sweep know."""

    sweep: Sweep
    root: str
    """The sweep's folder."""
    units: tuple[tuple[Trial, ...], ...] = ()
    """Grid and random: trials by unit."""
    points: tuple[Values, ...] = ()
    """With rungs: the setting of each unit."""
    news: Any = None
    """The queue (see jobs.relay.heard) that shows at the driver what is trained."""


class SweepWorker(tune.Trainable):
    """A trial is one unit; a step is one batch of its settings, or with rungs its setting at the next rung.

    The process serves unit after unit and keeps what it opened. Finished rows go to files in `inbox/`, which the driver
    moves into the table.
    """

    def setup(self, config: dict[str, Any], orders: Orders) -> None:
        """See `ray.tune.Trainable`."""
        self.orders, self.unit = orders, config
        self.todo: list[list[Trial]] = _steps(orders, config)
        self.at = 0
        # As it is now: a worker that takes a dead one's place does not do again what that one finished.
        self.known = finished_trials(TrialTable.of(orders.root))
        torch.set_num_threads(threads_of(orders.sweep.draft.config().ray))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """See `ray.tune.Trainable`."""
        self.unit, self.at = new_config, 0
        self.todo = _steps(self.orders, new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Evaluate the next batch; a mistake of the user's ends the unit and is told, not raised."""
        trials = self.todo[self.at]
        self.at += 1
        report: dict[str, Any] = {"done": self.at >= len(self.todo), "trials": len(trials)}
        try:
            values = self._evaluate(trials)
        except PerpcsError as error:
            return report | {"done": True, VALUE: float("nan"), "refused": " ".join(str(error).split())}
        means = _means(trials, values)
        return report | {VALUE: _best(means, self.orders.sweep), "values": means}

    def _evaluate(self, trials: Sequence[Trial]) -> dict[str, float]:
        """Trial id -> value; what was finished before is not done again."""
        values, by_experiment = {}, OrderedDict[str, list[Trial]]()
        for trial in trials:
            before = self.known.get(trial.id)
            if before is not None and before[0] == state_of(trial):
                values[trial.id] = before[1]
            else:
                by_experiment.setdefault(trial.cfg.experiment, []).append(trial)
        for group in by_experiment.values():
            self._make_ready(group)
            rows = self._engine(group[0].cfg).rows(group)
            write_json(join(self.orders.root, "inbox", f"{secrets.token_hex(8)}.json"), rows)
            values |= {row["id"]: row["value"] for row in rows}
        return values

    def _make_ready(self, group: Sequence[Trial]) -> None:
        for stages in dict.fromkeys(trial.stages for trial in group):
            first = next(trial for trial in group if trial.stages == stages)
            if not is_ready(first):
                reuse, name = self.orders.sweep.config.reuse, Path(first.cfg.experiment).name
                with in_this_process(), telling(self.orders.news, name):
                    make_ready(first.cfg, stages, root=self.orders.root, reuse=reuse)

    def _engine(self, cfg: ExperimentConfig) -> Engine:
        # One at a time: a base and a pool are most of a worker's memory.
        engine = _ENGINES.get(cfg.experiment)
        if engine is None:
            _ENGINES.clear()
            config = self.orders.sweep.config
            engine = _ENGINES[cfg.experiment] = Engine(cfg, slots=config.slots, cache=config.cache)
        return engine


def finished_trials(table: TrialTable) -> dict[str, tuple[str, float]]:
    """Trial id -> (state, value)."""
    return {row["id"]: (row["state"], row[VALUE]) for row in table.rows(["id", "state", VALUE])}


_ENGINES: dict[str, Engine] = {}
"""Of this process, by experiment."""


def _steps(orders: Orders, unit: Mapping[str, Any]) -> list[list[Trial]]:
    config = orders.sweep.config
    if config.rungs:
        point = unit["points"][0] if "points" in unit else orders.points[unit["unit"]]
        return [
            list(plan_points(orders.sweep, [{**point, config.rung_key: rung}]).trials)
            for rung in config.rungs
        ]
    if "points" in unit:
        return [list(plan_points(orders.sweep, unit["points"]).trials)]
    trials = orders.units[unit["unit"]]
    return [list(trials[i : i + config.batch]) for i in range(0, len(trials), config.batch)]


def _means(trials: Sequence[Trial], values: Mapping[str, float]) -> list[float]:
    """Mean over seeds of each setting's value, in the order in which the settings come."""
    by_setting: dict[str, list[float]] = {}
    for trial in trials:
        by_setting.setdefault(repr(sorted(trial.values.items())), []).append(values[trial.id])
    return [fmean(found) for found in by_setting.values()]


def _best(means: Sequence[float], sweep: Sweep) -> float:
    from jobs.sweep_plan import mode_of

    return max(means) if mode_of(sweep) == "max" else min(means)
