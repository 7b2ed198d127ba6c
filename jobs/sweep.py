"""Vary any settings of an experiment. What has to be trained is trained once; hundreds of assembly settings are
evaluated side by side for the price of a few. The same command again does only what is missing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.cli import config_parser, guarded, keys_text
from jobs.relay import heard
from jobs.runtime import connect
from jobs.sweep_outlook import outlook
from jobs.sweep_plan import (
    Plan,
    Trial,
    base_settings,
    changed_base,
    check_effects,
    plan,
    plan_points,
    seen_before,
    trains_any,
    units,
)
from jobs.sweep_report import write_all
from jobs.sweep_train import alone, is_ready, make_ready, state_of
from jobs.terminal import progress
from perpcs.config import describe
from perpcs.errors import ConfigError
from perpcs.sweep.config import Sweep, SweepConfig, load_sweep
from perpcs.sweep.space import Values, draws
from storage.files import exists, join, read_json, remove, walk, write_json
from storage.layout import Paths
from storage.trials import TrialTable

UNITS_PER_WORKER = 4
"""So many, about, so that workers end together."""

log = logging.getLogger("jobs.sweep")  # also where the module is the program, __main__


@dataclass(frozen=True)
class Folder:
    """A sweep's folder: the table of finished trials, and what workers finished since."""

    root: str

    @property
    def table(self) -> TrialTable:
        """The finished trials."""
        return TrialTable.of(self.root)

    @property
    def marker(self) -> str:
        """The file that says what the sweep leaves fixed."""
        return join(self.root, "sweep.json")

    def collect(self) -> int:
        """Move what workers finished into the table; how many trials were new."""
        inbox = [path for path, _ in walk(join(self.root, "inbox")) if path.endswith(".json")]
        added = self.table.add([row for path in inbox for row in read_json(path)])
        for path in inbox:  # only now: a kill before leaves them to the next run, which adds no trial twice
            remove(path)
        return added


def main(sweep: Sweep, *, dry_run: bool = False) -> None:
    """Print the plan, train and evaluate what is missing, write the report."""
    folder = Folder(Paths.of(sweep.draft.config().experiment).root)
    check_effects(sweep)
    _refuse_change(folder, sweep)
    whole = plan(sweep) if sweep.config.search != "optuna" else Plan((), ())
    todo = _missing(folder, whole.trials)
    for line in outlook(sweep, whole, todo):
        log.info("%s", line)
    if dry_run:
        return
    with alone(folder.root, "driver", wait=False):
        write_json(folder.marker, {"fixed": base_settings(sweep)})
        folder.collect()
        _run(sweep, folder, _missing(folder, whole.trials))
        write_all(sweep, whole, folder.root, folder.table.rows())


def _refuse_change(folder: Folder, sweep: Sweep) -> None:
    """ConfigError where a setting that the sweep does not vary is another than when its trials were made."""
    if not exists(folder.marker):
        return
    old, new = read_json(folder.marker)["fixed"], base_settings(sweep)
    if changed := changed_base(old, new):
        named = "; ".join(f"{key} was {old[key]!r}, is {new[key]!r}" for key in changed)
        raise ConfigError(
            f"{folder.root}: this sweep was made with other settings: {named}; use another folder (experiment=…)"
        )


def _missing(folder: Folder, trials: Sequence[Trial]) -> list[Trial]:
    done = folder.table.states()
    return [trial for trial in trials if done.get(trial.id, "") != (state_of(trial) or "not trained")]


def _run(sweep: Sweep, folder: Folder, todo: list[Trial]) -> None:
    config = sweep.config
    if config.search == "optuna":
        _search(sweep, folder)
    elif todo and config.rungs:
        with connect(sweep.draft.config().ray):
            _train_first(sweep, folder.root, todo)
            points = list(
                {
                    repr(t.values): {k: v for k, v in t.values.items() if k != config.rung_key} for t in todo
                }.values()
            )
            _evaluate(sweep, folder, total=0, points=points)
    elif todo:
        with connect(sweep.draft.config().ray):
            _train_first(sweep, folder.root, todo)
            _evaluate(sweep, folder, total=len(todo), trials=todo)


def _search(sweep: Sweep, folder: Folder) -> None:
    """Let Optuna propose until `sweep.trials` settings are finished."""
    seen = seen_before(sweep, folder.table.rows())
    left = sweep.config.trials - len(seen)
    if left <= 0:
        return
    from jobs.sweep_tune import Proposals

    first = plan_points(sweep, draws(sweep.axes, count=1, seed=0)).trials
    # One at a time where a setting is trained, or ends early by itself.
    alone_each = sweep.config.rungs or trains_any(sweep)
    size = 1 if alone_each else sweep.config.propose
    with connect(sweep.draft.config().ray):
        if not trains_any(sweep):
            _train_first(sweep, folder.root, first)
        search = Proposals(sweep, trials=left, size=size, seen=seen)
        _evaluate(
            sweep, folder, total=left * len(sweep.config.seeds), search=search, samples=-(-left // size)
        )


def _train_first(sweep: Sweep, root: str, trials: Sequence[Trial]) -> None:
    """Check every experiment; where there are fewer to train than workers, train them now, each with all workers.

    More are trained by the workers themselves, side by side.
    """
    first = {(t.cfg.experiment, t.stages): t for t in trials if not is_ready(t)}
    for trial in {repr((t.cfg.base, t.cfg.lora, t.cfg.prompt)): t for t in first.values()}.values():
        for stage in trial.stages:
            stage.refuse(trial.cfg)
    ray_cfg = sweep.draft.config().ray
    if sweep.config.rungs or len({name for name, _ in first}) < ray_cfg.workers:
        for trial in first.values():
            make_ready(trial.cfg, trial.stages, root=root, reuse=sweep.config.reuse)


def _evaluate(
    sweep: Sweep,
    folder: Folder,
    *,
    total: int,
    trials: Sequence[Trial] = (),
    points: Sequence[Values] = (),
    search: Any = None,
    samples: int = 1,
) -> None:
    from jobs.sweep_tune import run_units
    from jobs.sweep_worker import Orders

    workers = sweep.draft.config().ray.workers
    size = max(1, -(-len(trials) // (UNITS_PER_WORKER * workers)))
    by_unit = tuple(map(tuple, units(trials, size=size)))
    done = 0
    with progress("trials", total) as advance, heard() as news:
        orders = Orders(sweep, folder.root, by_unit, tuple(points), news)

        def on_report() -> None:
            nonlocal done
            if added := folder.collect():
                done += added
                advance(added)
                log.info("%d trials finished%s", done, f" of {total}" if total else "")

        run_units(orders, on_report=on_report, search=search, samples=samples)


def program() -> None:
    """The command line."""
    parser = config_parser(__doc__ or "", {"sweep-keys": ("list the settings of a sweep", sweep_keys)})
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and do nothing")
    given = parser.parse_args()
    main(load_sweep(given.config, given.overrides), dry_run=given.dry_run)


def sweep_keys() -> str:
    """The keys of the section `sweep`; those of the experiment are what `--keys` lists."""
    return keys_text(replace(setting, key=f"sweep.{setting.key}") for setting in describe(SweepConfig()))


if __name__ == "__main__":
    sys.exit(guarded(program))
