"""The `sweep:` section of a sweep's file, read strictly."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from perpcs.config.checks import Problems
from perpcs.config.load import COMMAND_LINE, LEAVES, Draft, parse_value
from perpcs.config.values import build, convert, hints, refuse
from perpcs.errors import ConfigError
from perpcs.evaluation.methods import get_methods
from perpcs.evaluation.metrics import metric
from perpcs.sweep.space import METHOD, Axis, read_axis

SECTION = "sweep"
FIXED = {
    "experiment": "it is the sweep's own folder",
    "seed": "list the seeds in sweep.seeds",
    "evaluate.methods": f"vary {METHOD}",
    "evaluate.resamples": "it changes intervals only",
    "evaluate.likelihood": "sweeps score what is written",
    "evaluate.save_text": "it changes no result",
}
"""Keys that are no axis, and why."""


@dataclass(frozen=True)
class SweepConfig:
    """How the space is searched, and with what."""

    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination; random: seeded draws; optuna: TPE, which proposes from what was seen so far."""
    trials: int = 40
    """Settings to try under random and optuna."""
    propose: int = 8
    """optuna: settings proposed at a time, and evaluated together."""
    seeds: tuple[int, ...] = (0,)
    """Every setting is evaluated under each; a seed has its own population, base and pool."""
    metric: str = ""
    """What the search improves and the report shows; the task's headline metric where empty."""
    scheduler: Literal["none", "asha"] = "none"
    """asha: settings that do badly end early (Ray Tune's ASHA); needs rungs."""
    rung_key: str = "evaluate.max_queries"
    """asha: the config key that rises from rung to rung: queries per target, or e.g. pool.train.steps."""
    rungs: tuple[int, ...] = ()
    """asha: its values, rising; the last is the full one."""
    keep: int = 3
    """asha: one in so many goes on at each rung."""
    reuse: tuple[str, ...] = ()
    """Experiment folders whose finished stages are taken over where their settings are equal."""
    slots: int = 128
    """Adapters side by side in one bank: settings x users that are answered together."""
    batch: int = 16
    """Settings between two reports of a worker: what a kill can cost."""
    cache: int = 200_000
    """Answers that a worker remembers, so that equal adapters are asked once."""
    log: Literal["none", "tensorboard"] = "none"
    """tensorboard: also write each setting's metric where TensorBoard finds it (tensorboard/ in the sweep's folder)."""

    def check(self) -> Problems:
        """Impossible values."""
        for key in ("trials", "propose", "slots", "batch"):
            if getattr(self, key) < 1:
                yield key, "must be at least 1"
        if self.cache < 0:
            yield "cache", "must be at least 0"
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            yield "seeds", "must be different whole numbers from 0 on"
        yield from self._check_rungs()

    def _check_rungs(self) -> Problems:
        if self.scheduler == "asha":
            if len(self.rungs) < 2 or list(self.rungs) != sorted({*self.rungs}) or self.rungs[0] < 1:
                yield "rungs", "must rise, from 1 on, at least two of them; e.g. [5, 25]"
            if self.keep < 2:
                yield "keep", "must be at least 2"
        elif self.rungs:
            yield "rungs", "have no effect without sweep.scheduler=asha"


@dataclass(frozen=True)
class Sweep:
    """A sweep's file, read: the experiment that it varies, and how."""

    draft: Draft
    config: SweepConfig
    axes: tuple[Axis, ...]
    origin: str

    @property
    def methods(self) -> tuple[str, ...]:
        """The method names of the space."""
        return next(axis.values for axis in self.axes if axis.key == METHOD)


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep of a file and `key=value` overrides, where `sweep.…` is the sweep's and all else the experiment's.

    Raises ConfigError, one line, for a key or a value of the space that no experiment could have.
    """
    own = [text for text in overrides if text.partition("=")[0].strip().startswith(f"{SECTION}.")]
    draft, tree = Draft.read(path, [text for text in overrides if text not in own], aside=SECTION)
    space = tree.pop("space", None)
    if not isinstance(space, dict) or not space:
        raise ConfigError(f"{path}: sweep.space: names nothing to vary; e.g. assembly.top_k: [1, 2, 3]")
    origins = dict.fromkeys((f"{SECTION}.{key}" for key in tree), str(path))
    for text in own:
        _override(text, tree, space, origins)
    config = _read_config(tree, origins)
    axes = tuple(_axis(str(key), raw, str(path)) for key, raw in space.items())
    sweep = Sweep(draft, config, axes, str(path))
    _check(sweep)
    return sweep


def _override(text: str, tree: dict[str, Any], space: dict[str, Any], origins: dict[str, str]) -> None:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is not key=value; write for example sweep.trials=20")
    name = key.removeprefix(f"{SECTION}.")
    parsed = parse_value(key, value)
    if name.startswith("space."):
        space[name.removeprefix("space.")] = parsed
    else:
        tree[name], origins[key] = parsed, COMMAND_LINE


def _read_config(tree: Mapping[str, Any], origins: Mapping[str, str]) -> SweepConfig:
    known = list(hints(SweepConfig))
    for name in tree:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, "space"], n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join([*known, 'space'])}"
            refuse(f"{SECTION}.{name}", f"no such key{hint}", origins)
    config: SweepConfig = build(SweepConfig, asdict(SweepConfig()) | dict(tree), origins, f"{SECTION}.")
    return config


def _axis(key: str, raw: Any, origin: str) -> Axis:
    if key != METHOD and key not in LEAVES:
        near = difflib.get_close_matches(key, [METHOD, *LEAVES], n=1)
        tip = f"did you mean {near[0]}?" if near else "`--keys` lists them all"
        raise ConfigError(f"{origin}: sweep.space.{key}: no such key; {tip}")
    if key in FIXED or key.startswith("ray."):
        reason = FIXED.get(key, "it changes where the work runs and no result")
        raise ConfigError(f"{origin}: sweep.space.{key}: cannot be varied: {reason}")
    hint: Any = str if key == METHOD else LEAVES[key]
    axis = read_axis(key, raw, whole=hint is int, origin=origin)
    if axis.is_range and hint not in (int, float):
        raise ConfigError(f"{origin}: sweep.space.{key}: has no range; list its values")
    place = f"sweep.space.{key}"
    return Axis(key, tuple(convert(v, hint, place, {place: origin}) for v in axis.values), *_rest(axis))


def _rest(axis: Axis) -> tuple[float, float, bool, bool]:
    return axis.low, axis.high, axis.log, axis.whole


def _check(sweep: Sweep) -> None:
    """Refuse, before anything runs, whatever a point of the space would be refused for."""
    if METHOD not in {axis.key for axis in sweep.axes}:
        raise ConfigError(f"{sweep.origin}: sweep.space.{METHOD}: is missing; e.g. {METHOD}: [gradient]")
    get_methods(sweep.methods)
    if sweep.config.metric and metric(sweep.config.metric).columns is None:
        raise ConfigError(f"sweep.metric: {sweep.config.metric!r}: sweeps score what is written; use another")
    if sweep.config.search == "grid" and any(axis.is_range for axis in sweep.axes):
        key = next(axis.key for axis in sweep.axes if axis.is_range)
        raise ConfigError(
            f"{sweep.origin}: sweep.space.{key}: a grid needs a list of values; or sweep.search=random"
        )
    for key, place in (
        ("experiment", sweep.draft.config().experiment),
        *(("sweep.reuse", p) for p in sweep.config.reuse),
    ):
        if "://" in place and not place.startswith("file://"):
            raise ConfigError(
                f"{sweep.origin}: {key}: {place}: a sweep needs a folder that all its nodes see, no object store"
            )
    for axis in sweep.axes:
        for value in axis.ends() if axis.key != METHOD else ():
            sweep.draft.config({axis.key: value}, origin=f"{sweep.origin}: sweep.space")
    if sweep.config.rungs:
        _check_rungs(sweep)


def _check_rungs(sweep: Sweep) -> None:
    key = sweep.config.rung_key
    if LEAVES.get(key) is not int:
        raise ConfigError(f"sweep.rung_key: {key!r} is no key with whole numbers; e.g. evaluate.max_queries")
    if key in {axis.key for axis in sweep.axes}:
        raise ConfigError(f"sweep.rung_key: {key} is also an axis of sweep.space; take it out there")
    for value in sweep.config.rungs:
        sweep.draft.config({key: value}, origin="sweep.rungs")
