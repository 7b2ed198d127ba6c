"""The plan in words: what will be trained, taken over, assembled and evaluated, and about how long that takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from jobs.experiment import Stage, is_finished, stage_info
from jobs.sweep_plan import Plan, Trial
from jobs.sweep_train import donors
from perpcs.config import as_flat_dict, digest
from perpcs.sweep.config import Sweep
from storage.layout import Paths
from storage.trials import TrialTable


def outlook(sweep: Sweep, plan: Plan, todo: Sequence[Trial]) -> Iterator[str]:
    """Lines to print before anything runs."""
    config = sweep.config
    root = Paths.of(sweep.draft.config().experiment).root
    if config.search == "optuna":
        yield f"{root}: optuna proposes {config.trials} settings, each under {_seeds(sweep)}"
        yield "to train: what the settings need, when they come up"
        return
    settings = len({repr(values) for values, _, _ in plan.points})
    yield (
        f"{root}: {settings} settings, each under {_seeds(sweep)}: {len(plan.points)} points, "
        f"{len(plan.trials)} different trials, {len(plan.trials) - len(todo)} finished before"
    )
    if config.rungs:
        rungs = ", ".join(map(str, config.rungs))
        yield f"in rungs of {config.rung_key} = {rungs}; about one setting in {config.keep} goes on at each"
    others = donors(root, config.reuse)
    made, taken = _stages(todo, others)
    yield (
        "to train: "
        + (_counts(made) or "nothing")
        + (f"; taken over from {', '.join(config.reuse)}: {_counts(taken)}" if taken else "")
    )
    workers = sweep.draft.config().ray.workers
    many = f"{workers} workers" if workers > 1 else "1 worker"
    yield f"to evaluate: {len(todo)} trials on {many}, up to {config.slots} adapters side by side"
    if sweep.draft.config().evaluate.likelihood:
        yield "evaluate.likelihood has no effect here: sweeps score what is written"
    yield _estimate(todo, made, others, TrialTable.of(root), workers)


def _seeds(sweep: Sweep) -> str:
    seeds = sweep.config.seeds
    return f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))})"


def _stages(todo: Sequence[Trial], others: Sequence[Paths]) -> tuple[dict[Stage, int], dict[Stage, int]]:
    """(outputs to make, outputs that other experiments have) by stage; what several experiments share counts once."""
    made: dict[Stage, set[str]] = {}
    taken: dict[Stage, set[str]] = {}
    for trial in {(t.cfg.experiment, t.stages): t for t in todo}.values():
        paths, sources = Paths.of(trial.cfg.experiment), list(others)
        flat = {k: v for k, v in as_flat_dict(trial.cfg).items() if k != "experiment"}
        read: dict[str, object] = {}
        for stage in trial.stages:
            read |= {key: value for key, value in flat.items() if stage.reads(key)}
            if stage.finished(trial.cfg):
                continue
            sources = [
                other for other in sources if other.root != paths.root and stage.alike(trial.cfg, other)
            ]
            (taken if sources else made).setdefault(stage, set()).add(digest(dict(read)))
    return {s: len(names) for s, names in made.items()}, {s: len(names) for s, names in taken.items()}


def _counts(stages: Mapping[Stage, int]) -> str:
    return ", ".join(f"{stage.title} {count}×" for stage, count in stages.items())


def _estimate(
    todo: Sequence[Trial], made: Mapping[Stage, int], others: Sequence[Paths], table: TrialTable, workers: int
) -> str:
    training = [_seconds(stage, others) for stage in made]
    spent = [row["spent"] for row in table.rows(["spent"])] or list(_evaluations(others))
    if any(seconds is None for seconds in training) or (todo and not spent):
        return "time: nothing like it was run yet, so there is no estimate"
    experiments = len({trial.cfg.experiment for trial in todo})
    together = max(1, min(workers, experiments))
    train = (
        sum((seconds or 0.0) * count for seconds, count in zip(training, made.values(), strict=True))
        / together
    )
    evaluate = len(todo) * fmean(spent or [0.0]) / workers
    return f"time: about {_minutes(train)} to train and {_minutes(evaluate)} to evaluate, by what was measured before"


def _seconds(stage: Stage, others: Sequence[Paths]) -> float | None:
    found = [
        float(stage_info(other, stage.name, wanted_by="the plan")["seconds"])
        for other in others
        if is_finished(other, stage.name)
    ]
    return fmean(found) if found else None


def _evaluations(others: Sequence[Paths]) -> Iterator[float]:
    """Seconds per evaluated method of finished pipelines: more than a trial of a sweep takes."""
    for other in others:
        if is_finished(other, "evaluate"):
            info = stage_info(other, "evaluate", wanted_by="the plan")
            yield float(info["seconds"]) / len(info["methods"])


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
