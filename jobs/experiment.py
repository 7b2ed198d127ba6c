"""One experiment: where everything is, and which stages are finished with which settings.

A stage that is finished with the same settings, over the same earlier stages, is not run again. One that costs
training is never redone over old results: changed settings are refused, with the difference.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.claim import claim
from perpcs.config import ExperimentConfig, as_flat_dict, digest
from perpcs.errors import ConfigError, StoreError
from storage.files import exists, read_json, write_json
from storage.layout import Paths
from storage.shared import share

HOW = ("population.path", "base.device", "base.adapt.workers", "base.adapt.checkpoint_s",
       "own.pack", "own_warm.pack", "pool.train.pack", "pool.gate.pack", "pool.checksums", "evaluate.batch",
       "assembly.items_per_pass", "assembly.fit.pack")  # fmt: skip
"""Settings that change how the work is done and not what comes out (beyond float noise): free to change at any time."""

log = logging.getLogger(__name__)

Info = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline. `run` may assume that the stages in `needs` are finished."""

    name: str
    title: str
    run: Callable[[ExperimentConfig, Paths], Info]
    """Does the work. What it reports is kept; `mark`, if it is there, says what exactly was made: later stages are run
    again when it changes."""
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    """Config sections or keys that its output depends on."""
    makes: str = ""
    """The place (see Paths) of its output; where that is gone, the stage is not finished."""
    beside: tuple[str, ...] = ()
    """Other places that it makes."""
    costly: bool = False
    """Refuse to start over with other settings while the output is there."""
    grows: bool = False
    """The output is kept and completed by later runs, so that an unfinished one is tied to its settings as well."""
    mark: Callable[[Paths], str] | None = None
    """Looks up the `mark` as it is now, where the output can change without this program: another one is not finished."""
    check: Callable[[ExperimentConfig, Paths], None] | None = None
    """Refuses, before anything is written, what can be seen without doing the work."""

    def __call__(self, cfg: ExperimentConfig) -> Info:
        """Run unless finished; returns what the stage reports of itself."""
        self._inputs(cfg, Paths.of(cfg.experiment))  # refuses where an earlier stage is missing
        self.refuse(cfg)
        return self.do(cfg)

    def finished(self, cfg: ExperimentConfig) -> bool:
        """Whether it was run with these settings over the earlier stages as they are, and its output is there."""
        paths = Paths.of(cfg.experiment)
        marker = self._marker(paths)
        if marker is None or not marker["finished"] or not self._made(paths):
            return False
        if self.mark is not None and self.mark(paths) != marker["info"].get("mark"):
            return False
        return all(is_finished(paths, name) for name in self.needs) and not self._changes(
            marker["inputs"], self._inputs(cfg, paths)
        )

    def refuse(self, cfg: ExperimentConfig) -> None:
        """Raises PerpcsError for what can be refused before this and earlier stages run: changed settings, `check`."""
        if self.finished(cfg):
            return
        paths = Paths.of(cfg.experiment)
        self._refuse_change(paths, self._settings(cfg))
        if self.check is not None:
            self.check(cfg, paths)

    def do(self, cfg: ExperimentConfig) -> Info:
        """As a call, for who has called `refuse` before."""
        paths = Paths.of(cfg.experiment)
        inputs = self._inputs(cfg, paths)
        if self.finished(cfg):
            log.info("%s: already done", self.title)
            return stage_info(paths, self.name, wanted_by=self.name)
        self._refuse_change(paths, inputs)
        with claim(paths):
            return self._work(cfg, paths, self._as_recorded(paths, inputs))

    def _work(self, cfg: ExperimentConfig, paths: Paths, inputs: Info) -> Info:
        if self.grows or self._marker(paths) is not None:
            write_json(paths.marker(self.name), {"inputs": inputs, "finished": False, "info": {}})
        started = time.monotonic()
        info = self.run(cfg, paths)
        seconds = round(time.monotonic() - started, 2)
        info = {**info, "seconds": seconds}
        write_json(paths.marker(self.name), {"inputs": inputs, "finished": True, "info": info})
        log.info("%s: done in %.1f s", self.title, seconds)
        return info

    def reads(self, key: str) -> bool:
        """Whether its output depends on this setting by itself, not by way of earlier stages."""
        return _covers(self.settings, key)

    def alike(self, cfg: ExperimentConfig, other: Paths) -> bool:
        """Whether another experiment finished it with the same settings, whatever came before."""
        marker = self._marker(other)
        if marker is None or not marker["finished"] or not self._made(other):
            return False
        theirs = {key: value for key, value in marker["inputs"].items() if not key.startswith("stage ")}
        return not self._changes(theirs, self._settings(cfg))

    def inputs(self, cfg: ExperimentConfig) -> Info:
        """Everything its output follows from: settings, and digests of the stages it needs, which must be finished."""
        return self._inputs(cfg, Paths.of(cfg.experiment))

    def take_over(self, cfg: ExperimentConfig, other: Paths) -> bool:
        """Take the stage's output from another experiment that finished it with equal inputs; whether there is one."""
        paths = Paths.of(cfg.experiment)
        marker = self._marker(other)
        if marker is None or not marker["finished"] or not self._made(other):
            return False
        if self.mark is not None and self.mark(other) != marker["info"].get("mark"):
            return False
        if self._changes(marker["inputs"], self._inputs(cfg, paths)):
            return False
        for place in filter(None, (self.makes, *self.beside)):
            share(getattr(other, place), getattr(paths, place))
        write_json(paths.marker(self.name), marker)
        return True

    def _marker(self, paths: Paths) -> Info | None:
        path = paths.marker(self.name)
        return dict(read_json(path)) if exists(path) else None

    def _made(self, paths: Paths) -> bool:
        return not self.makes or exists(getattr(paths, self.makes))

    def _refuse_change(self, paths: Paths, inputs: Info) -> None:
        """ConfigError when output that is to be kept was made with other `inputs` (some of them, or all)."""
        marker = self._marker(paths)
        if not self.costly or marker is None or not self._made(paths):
            return
        old = marker["inputs"]
        whole = any(key.startswith("stage ") for key in inputs)
        changed = [k for k in self._changes(old, inputs) if whole or not k.startswith("stage ")]
        if changed and (marker["finished"] or self.grows):
            raise ConfigError(_changed(self, paths.root, changed, (self._filled(old), inputs)))

    def _changes(self, old: Info, new: Info) -> list[str]:
        """Keys whose values differ. A setting that the program did not have yet counts with its default of today."""
        before = self._filled(old)
        return [key for key in {**before, **new} if before.get(key) != new.get(key)]

    def _filled(self, inputs: Info) -> Info:
        return {**self._settings(ExperimentConfig()), **inputs}

    def _as_recorded(self, paths: Paths, inputs: Info) -> Info:
        """Inputs as they were recorded, where none differs: later stages hold a digest of the record."""
        marker = self._marker(paths)
        return inputs if marker is None or self._changes(marker["inputs"], inputs) else dict(marker["inputs"])

    def _settings(self, cfg: ExperimentConfig) -> Info:
        return {key: value for key, value in _plain(cfg).items() if _covers(self.settings, key)}

    def _inputs(self, cfg: ExperimentConfig, paths: Paths) -> Info:
        inputs = self._settings(cfg)
        for name in self.needs:
            inputs[f"stage {name}"] = stage_digest(paths, name, wanted_by=self.name)
        return inputs


def is_finished(paths: Paths, stage: str) -> bool:
    """Whether a stage has a marker that says so."""
    path = paths.marker(stage)
    return exists(path) and bool(read_json(path)["finished"])


def read_marker(paths: Paths, stage: str, *, wanted_by: str) -> Info:
    """A finished stage's marker. Raises StoreError naming the program to run when it is not finished."""
    if not is_finished(paths, stage):
        raise StoreError(
            f"{paths.root}: {wanted_by} needs the stage {stage} first; run python -m jobs.{stage} or jobs.pipeline"
        )
    return dict(read_json(paths.marker(stage)))


def stage_info(paths: Paths, stage: str, *, wanted_by: str) -> Info:
    """What a finished stage reported of itself."""
    return dict(read_marker(paths, stage, wanted_by=wanted_by)["info"])


def stage_digest(paths: Paths, stage: str, *, wanted_by: str) -> str:
    """What exactly a finished stage made, in 16 hex digits: its settings, those of all before it, and its mark."""
    marker = read_marker(paths, stage, wanted_by=wanted_by)
    return digest({"inputs": marker["inputs"], "mark": marker["info"].get("mark")})


def _covers(settings: tuple[str, ...], key: str) -> bool:
    return key not in HOW and any(key == s or key.startswith(f"{s}.") for s in settings)


def _plain(cfg: ExperimentConfig) -> Mapping[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in as_flat_dict(cfg).items()}


def _changed(stage: Stage, root: str, keys: Sequence[str], values: tuple[Info, Info]) -> str:
    old, new = values
    named = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in keys if not k.startswith("stage ")]
    shown = "; ".join(named) or "an earlier stage was made anew, with other settings"
    hint = "use another folder (experiment=…) or delete this one"
    return f"{root}: {stage.name} was made with other settings: {shown}; {hint}"
