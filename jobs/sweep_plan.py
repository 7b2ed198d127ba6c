"""What a sweep has to train and to evaluate: settings that come out equal are one trial, and trials that need the same
training share an experiment below the sweep's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from jobs import adapt, assemble, evaluate, index, ingest, select_sharers, train_own, train_sharers
from jobs.experiment import HOW, Stage
from perpcs.assembly.assembler import settings_of as rule_settings
from perpcs.config import ExperimentConfig, as_flat_dict, digest
from perpcs.config.schema import AssemblyConfig
from perpcs.errors import ConfigError
from perpcs.evaluation.methods import METHODS, Method
from perpcs.evaluation.metrics import metric, task_metrics
from perpcs.sweep.config import FIXED, Sweep
from perpcs.sweep.space import METHOD, Values, draws, grid
from storage.files import join
from storage.layout import Paths

SHARED = (ingest.STAGE, adapt.STAGE)
STAGES: Mapping[str, tuple[Stage, ...]] = {
    "none": SHARED,
    "own": (*SHARED, train_own.STAGE),
    "recipe": (*SHARED, select_sharers.STAGE, train_sharers.STAGE, index.STAGE),
}
"""What has to be there before a method of each kind can be evaluated."""


@dataclass(frozen=True)
class Trial:
    """One setting under one seed. `cfg.experiment` is the folder with what it needs trained."""

    id: str
    values: Values
    """What the sweep varies, the method among it."""
    method: Method
    cfg: ExperimentConfig

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that have to be finished first."""
        return STAGES[self.method.uses]


@dataclass(frozen=True)
class Plan:
    """All trials of a grid or of random draws; `points` lead from the space to them."""

    points: tuple[tuple[Values, int, str], ...]
    """(values, seed, trial id) of every point of the space; several may be one trial."""
    trials: tuple[Trial, ...]

    @cached_property
    def experiments(self) -> dict[str, list[Trial]]:
        """Trials by the folder of the experiment they need."""
        found: dict[str, list[Trial]] = {}
        for trial in self.trials:
            found.setdefault(trial.cfg.experiment, []).append(trial)
        return found


def plan(sweep: Sweep) -> Plan:
    """The points of a grid, or all random draws, as trials."""
    config = sweep.config
    points = list(
        grid(sweep.axes)
        if config.search == "grid"
        else draws(sweep.axes, count=config.trials, seed=sweep.draft.config().seed)
    )
    if config.rungs:
        points = [{**point, config.rung_key: config.rungs[-1]} for point in points]
    return plan_points(sweep, points)


def plan_points(sweep: Sweep, points: Iterable[Values]) -> Plan:
    """These points under every seed, as trials."""
    placed, trials = [], dict[str, Trial]()
    for values in points:
        for seed in sweep.config.seeds:
            trial = make_trial(sweep, values, seed)
            placed.append((values, seed, trial.id))
            trials.setdefault(trial.id, trial)
    return Plan(tuple(placed), tuple(trials.values()))


TOLD = frozenset({"assembly.sure_items", "assembly.fit_epochs"})
"""Keys in a trial's id at their default too: with them came other answers, and trials from before are others."""


def make_trial(sweep: Sweep, values: Values, seed: int) -> Trial:
    """One point under one seed."""
    method = METHODS[values[METHOD]]
    changed = {key: value for key, value in values.items() if key != METHOD}
    cfg = sweep.draft.config({**changed, "seed": seed}, origin="sweep.space")
    trained = {key: value for key, value in settings_of(cfg, method).items() if trains(method, key)}
    name = f"seed-{seed}-{digest(trained, method.uses)[:8]}"
    folder = join(Paths.of(cfg.experiment).root, "experiments", name)
    return Trial(
        id=digest({METHOD: method.name, **settings_of(cfg, method)}),
        values=values,
        method=method,
        cfg=replace(cfg, experiment=folder),
    )


def trains(method: Method, key: str) -> bool:
    """Whether this setting changes what has to be trained, or chosen, before the method can be evaluated."""
    return any(stage.reads(key) for stage in STAGES[method.uses])


def matters(method: Method, key: str) -> bool:
    """Whether this setting can change the method's answers."""
    if key in HOW or (key in FIXED and key != "seed"):
        return False
    if trains(method, key) or evaluate.STAGE.reads(key):
        return True
    section, _, name = key.partition(".")
    if section == "assembly":
        return method.uses == "recipe" and name in rule_settings(method.rule, AssemblyConfig())
    return method.uses == "recipe" and assemble.STAGE.reads(key)


def settings_of(cfg: ExperimentConfig, method: Method) -> dict[str, Any]:
    """Everything that the method's answers depend on and that is not as it is by default: a setting that is added to
    the program later leaves old trials what they are, unless it is in TOLD. A default that changes is seen by
    `changed_base`."""
    usual = as_flat_dict(ExperimentConfig())
    return {
        key: value
        for key, value in as_flat_dict(cfg).items()
        if matters(method, key) and (key == "seed" or key in TOLD or value != usual[key])
    }


def check_effects(sweep: Sweep) -> None:
    """ConfigError for an axis that changes nothing for any method of the sweep, and for methods that have no axes."""
    methods = [METHODS[name] for name in sweep.methods]
    if raw := [method.name for method in methods if method.uses not in STAGES]:
        raise ConfigError(
            f"{sweep.origin}: sweep.space.{METHOD}: {raw[0]!r} is no row that a sweep can evaluate; take it out"
        )
    keys = [axis.key for axis in sweep.axes if axis.key != METHOD] + (
        [sweep.config.rung_key] if sweep.config.rungs else []
    )
    for key in keys:
        if not any(matters(method, key) for method in methods):
            names = ", ".join(sweep.methods)
            raise ConfigError(
                f"{sweep.origin}: sweep.space.{key}: has no effect on {names}; take it out, or vary {_instead(key)}"
            )


def _instead(key: str) -> str:
    other = {
        "assembly.temperature": "assembly.gradient_temperature",
        "assembly.gradient_temperature": "assembly.temperature",
    }
    return other.get(key, "another key")


def base_settings(sweep: Sweep) -> dict[str, Any]:
    """What the sweep does not vary and its results depend on, as JSON values."""
    methods = [METHODS[name] for name in sweep.methods]
    varied = {axis.key for axis in sweep.axes} | {"seed"}
    flat = as_flat_dict(sweep.draft.config())
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flat.items()
        if key not in varied and any(matters(method, key) for method in methods)
    }


def changed_base(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys that both runs of a sweep leave fixed, at different values. A key that only one of them knows was, or is,
    varied or without effect."""
    return [key for key in new if key in old and old[key] != new[key]]


def units(trials: Sequence[Trial], *, size: int) -> list[list[Trial]]:
    """Trials in groups of one experiment each, at most `size`; experiments take turns, so that workers start apart."""
    by_experiment: dict[str, list[Trial]] = {}
    for trial in trials:
        by_experiment.setdefault(trial.cfg.experiment, []).append(trial)
    cut = [[group[i : i + size] for i in range(0, len(group), size)] for group in by_experiment.values()]
    return [
        chunks[turn] for turn in range(max(map(len, cut), default=0)) for chunks in cut if turn < len(chunks)
    ]


def metric_of(sweep: Sweep) -> str:
    """The metric that the sweep looks at."""
    return sweep.config.metric or task_metrics(sweep.draft.config().population.task)[0]


def mode_of(sweep: Sweep) -> str:
    """`max` or `min`: what is better of its metric."""
    return "max" if metric(metric_of(sweep)).higher_is_better else "min"


def trains_any(sweep: Sweep) -> bool:
    """Whether some axis, or the rungs, change what has to be trained."""
    keys = [axis.key for axis in sweep.axes] + ([sweep.config.rung_key] if sweep.config.rungs else [])
    return (
        any(trains(METHODS[name], key) for name in sweep.methods for key in keys)
        or len({METHODS[m].uses for m in sweep.methods}) > 1
    )


def seen_before(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Values, float]]:
    """Settings of finished trials, of the last rung each came to, with the mean of their value over seeds."""
    keys = [axis.key for axis in sweep.axes]
    found: dict[str, tuple[Values, dict[int, list[float]]]] = {}
    for row in rows:
        values = json.loads(row["values"])
        if all(key in values for key in keys):
            setting = {key: values[key] for key in keys}
            _, by_rung = found.setdefault(repr(setting), (setting, {}))
            by_rung.setdefault(values.get(sweep.config.rung_key, 0), []).append(row["value"])
    return [(setting, fmean(by_rung[max(by_rung)])) for setting, by_rung in found.values()]
