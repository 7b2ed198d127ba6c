"""Ray Tune over a sweep's units: who runs which, in what order, and which settings end early."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ray import tune
from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from jobs.sweep_plan import mode_of
from jobs.sweep_worker import VALUE, Orders, SweepWorker
from perpcs.errors import PerpcsError
from perpcs.sweep.config import Sweep
from perpcs.sweep.space import Axis, Values
from storage.files import join, local

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # results go to the table, and users' numbers nowhere else
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # what is finished says the table
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "8",
}

log = logging.getLogger(__name__)

OnReport = Callable[[], None]
"""Called in the driver whenever a worker has finished a batch."""


def run_units(
    orders: Orders, *, on_report: OnReport, search: Searcher | None = None, samples: int = 1
) -> None:
    """Run all units, or `samples` proposals of `search`, on `ray.workers` workers; Ray must be there.

    A worker that dies is replaced and its unit goes on, `ray.retries` times. Raises PerpcsError for what a user can
    mend, RuntimeError with a worker's traceback otherwise; what other units finished is kept.
    """
    os.environ.update(QUIET)
    watch = _Watch(on_report)
    units = list(range(len(orders.points or orders.units)))
    for left in reversed(range(orders.sweep.draft.config().ray.retries + 1)):
        space = {} if search else {"unit": tune.grid_search(units)}
        results = _fit(orders, watch, space, search=search, samples=samples)
        on_report()
        if watch.refused:
            raise PerpcsError(watch.refused[0])
        if not results.errors:
            return
        # Tune replaces a worker that dies in its unit, and gives up a unit whose worker dies before it begins.
        died = all(isinstance(error, RayActorError) for error in results.errors)
        if search or not died or not left:
            raise RuntimeError(f"{len(results.errors)} units failed; the first: {results.errors[0]}")
        done = {result.config["unit"] for result in results if not result.error}
        units = [unit for unit in units if unit not in done]  # an error's config is not always there
        log.warning("%d units are begun again: their worker died", len(units))


def _fit(
    orders: Orders, watch: _Watch, space: dict[str, Any], *, search: Searcher | None, samples: int
) -> tune.ResultGrid:
    sweep = orders.sweep
    ray_cfg = sweep.draft.config().ray
    resources = {"cpu": ray_cfg.cpus, "gpu": ray_cfg.gpus}
    folder = join(orders.root, "tune")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(SweepWorker, orders=orders), resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=VALUE,
            mode=mode_of(sweep),
            num_samples=samples,
            search_alg=search,
            scheduler=_scheduler(sweep),
            max_concurrent_trials=ray_cfg.workers,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="units",
            storage_path=str(local(folder)),
            verbose=0,
            callbacks=[watch],
            # What is finished is in the table; there is nothing else to keep.
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=ray_cfg.retries),
        ),
    )
    try:
        return tuner.fit()
    finally:
        shutil.rmtree(local(folder), ignore_errors=True)


def _scheduler(sweep: Sweep) -> ASHAScheduler | None:
    if sweep.config.scheduler != "asha":
        return None
    return ASHAScheduler(
        time_attr="training_iteration",
        max_t=len(sweep.config.rungs),
        grace_period=1,
        reduction_factor=sweep.config.keep,
    )


class _Watch(Callback):
    """Tells the driver of every batch, and remembers what workers refused."""

    def __init__(self, on_report: OnReport) -> None:
        self.on_report, self.refused = on_report, list[str]()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See `ray.tune.Callback`."""
        if refused := result.get("refused"):
            self.refused.append(refused)
        self.on_report()


class Proposals(Searcher):
    """Optuna's TPE, several settings at a time: a Tune trial is one proposal, evaluated together."""

    def __init__(self, sweep: Sweep, *, trials: int, size: int, seen: Sequence[tuple[Values, float]]) -> None:
        """trials: settings to propose; size: of one proposal; seen: (values, value) of settings finished before."""
        super().__init__(metric=VALUE, mode=mode_of(sweep))
        self.axes, self.left, self.size = sweep.axes, trials, size
        self.inner = _optuna(sweep, len(seen))
        self.proposed: dict[str, int] = {}
        for values, value in seen:
            with suppress(KeyError, ValueError):  # a point of an older, larger space
                self.inner.add_evaluated_point({a.key: encode(a, values[a.key]) for a in self.axes}, value)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """See `ray.tune.search.Searcher`."""
        count = min(self.size, self.left)
        if not count:
            return Searcher.FINISHED
        self.left -= count
        self.proposed[trial_id] = count
        drawn = [self.inner.suggest(f"{trial_id}/{i}") for i in range(count)]
        return {"points": [{a.key: decode(a, one[a.key]) for a in self.axes} for one in drawn]}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """See `ray.tune.search.Searcher`."""
        values = (result or {}).get("values", [])
        for i in range(self.proposed.pop(trial_id, 0)):
            found = {VALUE: values[i]} if i < len(values) else None
            self.inner.on_trial_complete(f"{trial_id}/{i}", found, error=found is None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: what was seen is in the table of trials."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


def _optuna(sweep: Sweep, seen: int) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Other draws when a stopped search goes on; the same when it is begun again.
    seed = sweep.draft.config().seed + 7919 * seen
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    space = OptunaSearch.convert_search_space({axis.key: domain(axis) for axis in sweep.axes})
    return OptunaSearch(space=space, metric=VALUE, mode=mode_of(sweep), sampler=sampler)


def domain(axis: Axis) -> Any:
    """An axis as Tune's domain: a range, or the number of a value in the list, in its order where values have one."""
    if axis.is_range:
        if axis.whole:
            return (tune.lograndint if axis.log else tune.randint)(int(axis.low), int(axis.high) + 1)
        return (tune.loguniform if axis.log else tune.uniform)(axis.low, axis.high)
    ordered = len(axis.values) > 1 and all(type(value) in (int, float) for value in axis.values)
    return tune.randint(0, len(axis.values)) if ordered else tune.choice(list(range(len(axis.values))))


def encode(axis: Axis, value: Any) -> Any:
    """A value as the domain has it. Raises ValueError for one that is not in the list."""
    return value if axis.is_range else axis.values.index(tuple(value) if isinstance(value, list) else value)


def decode(axis: Axis, drawn: Any) -> Any:
    """The other way round."""
    return drawn if axis.is_range else axis.values[drawn]
