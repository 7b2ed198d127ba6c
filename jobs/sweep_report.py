"""What a sweep leaves: the page, the recommended setting as a config, the best settings on the terminal."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.sweep_plan import Plan, Trial, make_trial, metric_of, plan_points, seen_before
from perpcs.assembly.assembler import pieces_chosen
from perpcs.config import to_yaml
from perpcs.report.sweep import SweepReport, sweep_table, write_sweep_report
from perpcs.sweep.config import Sweep
from perpcs.sweep.results import Point, point_of, recommend
from perpcs.sweep.space import Values
from storage.files import join, local, remove, write_text

SERVED = (
    "reranked_fitted", "reranked", "gradient_global", "gradient_global_fitted", "gradient", "gradient_fitted", "gate",
    "gate_batches", "retrieval",
)  # fmt: skip
"""Rules that the service knows (serve.config; a test compares them)."""

log = logging.getLogger(__name__)

Row = Mapping[str, Any]


def write_all(sweep: Sweep, plan: Plan, root: str, rows: Sequence[Row]) -> None:
    """Write report.html and recommended.yaml from the finished trials, and print the best."""
    if sweep.config.search == "optuna":
        plan = plan_points(sweep, [_full(sweep, values) for values, _ in seen_before(sweep, rows)])
    points, unfinished = points_of(sweep, plan, rows)
    if not points:
        log.warning("no setting is finished under every seed yet; run the command again")
        return
    report = SweepReport(
        name=Path(root).name,
        points=points,
        axes=sweep.axes,
        recommended=recommend(points, resamples=sweep.draft.config().evaluate.resamples),
        unfinished=unfinished,
        grid=sweep.config.search == "grid",
        command=f"python -m jobs.sweep {sweep.origin}",
    )
    page = join(root, "report.html")
    write_sweep_report(report, local(page))
    config = join(root, "recommended.yaml")
    write_text(config, recommended_yaml(sweep, report.recommended, root))
    service = join(root, "serve.yaml")
    remove(service)
    if text := serve_yaml(sweep, report.recommended, root):
        write_text(service, text)
    if sweep.config.log == "tensorboard":
        log_tensorboard(report, local(join(root, "tensorboard")))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(sweep_table(report))
    places = {"report": page, "recommended": config} | ({"to serve": service} if text else {})
    for name, place in places.items():
        console.print(f"{name:<12} {place}", highlight=False, soft_wrap=True)


def _full(sweep: Sweep, values: Values) -> Values:
    return {**values, sweep.config.rung_key: sweep.config.rungs[-1]} if sweep.config.rungs else values


def points_of(sweep: Sweep, plan: Plan, rows: Sequence[Row]) -> tuple[list[Point], int]:
    """(settings that have a row under every seed, how many others there are)."""
    by_id = {row["id"]: row for row in rows}
    grouped: dict[str, tuple[Values, list[Row | None]]] = {}
    for values, _, trial_id in plan.points:
        grouped.setdefault(repr(values), (values, []))[1].append(by_id.get(trial_id))
    name, resamples = metric_of(sweep), sweep.draft.config().evaluate.resamples
    points = [
        point_of(values, [row for row in found if row is not None], name=name, resamples=resamples)
        for values, found in grouped.values()
        if None not in found
    ]
    return points, len(grouped) - len(points)


def recommended_yaml(sweep: Sweep, point: Point, root: str) -> str:
    """A setting as a config, with its method among those evaluated, in the folder where the sweep trained its pool:
    the pipeline does what is missing there."""
    trial = recommended_trial(sweep, point)
    methods = tuple(dict.fromkeys([*sweep.draft.config().evaluate.methods, trial.method.name]))
    config = replace(trial.cfg, evaluate=replace(trial.cfg.evaluate, methods=methods))
    head = f"# python -m jobs.pipeline {join(root, 'recommended.yaml')}\n"
    head += f"# {trial.method.name} is the method that the sweep recommends.\n"
    return head + to_yaml(config)


def recommended_trial(sweep: Sweep, point: Point) -> Trial:
    """The setting under the first seed; with rungs of a training key, trained to the end."""
    values = _full(sweep, point.values)
    if sweep.config.rung_key == "evaluate.max_queries":
        values = {key: value for key, value in values.items() if key != sweep.config.rung_key}
    return make_trial(sweep, values, point.seeds[0])


def serve_yaml(sweep: Sweep, point: Point, root: str) -> str:
    """The service's config for a setting; '' for a method that the service does not have."""
    trial = recommended_trial(sweep, point)
    method = trial.method
    if method.rule not in SERVED or method.of_another or method.shows != "plain":
        return ""
    top_k = pieces_chosen(method.rule, trial.cfg.assembly)
    return (
        f"# serve run serve.app:build config={join(root, 'serve.yaml')}\n"
        f"# After python -m jobs.pipeline {join(root, 'recommended.yaml')}, whose experiment it serves.\n"
        f"experiment: {trial.cfg.experiment}\n"
        f"assembly: {{rule: {method.rule}, merge: {method.merge}, top_k: {top_k}, max_top_k: {max(8, top_k)}}}\n"
    )


def log_tensorboard(report: SweepReport, folder: Path) -> None:
    """One run per setting: its values as hyperparameters, the metric of each seed as a scalar. Replaces what is there."""
    from tensorboardX import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    for number, point in enumerate(report.points):
        with SummaryWriter(str(folder / f"setting-{number:04d}")) as writer:
            plain = {
                k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in point.values.items()
            }
            writer.add_hparams(
                plain, {f"hparam/{point.metric}": point.value, "hparam/bytes_per_user": point.bytes_per_user}
            )
            for seed, value in zip(point.seeds, point.by_seed, strict=True):
                writer.add_scalar(point.metric, value, seed)
