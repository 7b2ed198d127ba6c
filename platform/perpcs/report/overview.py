"""Many experiments on one page: who is best where, one table for each experiment, and users by whom they can borrow from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from perpcs.evaluation.across import Group, SideBySide
from perpcs.evaluation.comparisons import ADAPTED, OTHER, OWN
from perpcs.evaluation.contrasts import Contrast, sample_of
from perpcs.evaluation.metrics import metric, telling
from perpcs.evaluation.results import Role
from perpcs.report.tables import markdown
from perpcs.report.wording import MARKS, UNDEFINED, number, signed, titled

SHOWN = (
    ADAPTED, OWN, "peft_retrieval", "gradient_global", "reranked", "reranked_fitted", "per_pcs", "joint", "random_pieces",
)  # fmt: skip
"""Columns of the overview, those that were evaluated."""
OURS = "reranked_fitted"
"""The recommended rule, which is compared with the adapted base and with OPPU."""

LEGEND = (
    "Means over seeds. Bold: the best of the line. * the 95 % interval of the difference leaves out 0 and the permutation "
    "test agrees (Holm's correction over the methods); users are drawn and swapped within seeds."
)


def overview(side: SideBySide) -> str:
    """Experiments × methods under each one's first metric, and under the golds' loss where it was asked for, with what is
    personal and where the recommended rule stands."""
    methods = [m for m in SHOWN if any(cell.method == m for cell in side.cells)]
    pairs = [(OWN, OTHER), (OURS, ADAPTED), (OURS, OWN)]
    gaps = [f"{side.titles.get(a, a)} − {side.titles.get(b, b)}" for a, b in pairs]
    lines = [
        [
            _name(group) + ("" if name == group.runs[0].metrics[0] else f", {titled(name)}"),
            *_best_marked(side, group, methods, name),
            *(_gap(_contrast(side, group, *p, name)) for p in pairs),
        ]
        for group in side.groups
        for name in telling(group.runs[0].metrics)
    ]
    return markdown(["Experiment", *(side.titles.get(m, m) for m in methods), *gaps], lines)


def tables(side: SideBySide) -> Iterator[tuple[str, str]]:
    """(heading, Markdown table) of every experiment: all methods with intervals and what they have over adapted and OPPU."""
    for group in side.groups:
        names = group.runs[0].metrics
        more = telling(group.runs[0].metrics)[1:]
        gaps = ["− task-adapted base", "− OPPU"]
        gaps += [f"{gap}: {titled(name)}" for name in more for gap in gaps]
        header = ["Method", *map(titled, names), *gaps]
        yield _name(group), markdown(header, [_line(side, group, m, names) for m in group.runs[0].methods])


def _name(group: Group) -> str:
    first = group.runs[0].experiment
    name = re.sub(r"/seed-\d+$", "", first.name).rsplit("/", 1)[-1]
    return f"{name}: {first.task}, {first.targets} users, {len(group.runs)} seed{'s' * (len(group.runs) > 1)}"


def _best_marked(side: SideBySide, group: Group, methods: Sequence[str], name: str) -> list[str]:
    values = [None if (cell := side.cell(group.name, m, name)) is None else cell.value for m in methods]
    best = max((metric(name).sign * v for v in values if v is not None), default=None)
    return [
        f"**{number(v)}**" if v is not None and metric(name).sign * v == best else number(v) for v in values
    ]


def _contrast(side: SideBySide, group: Group, method: str, versus: str, name: str) -> Contrast | None:
    wanted = (group.name, method, versus, name)
    return next((c for c in side.contrasts if (c.group, c.method, c.versus, c.metric) == wanted), None)


def _gap(found: Contrast | None) -> str:
    if found is None:
        return UNDEFINED
    ends = "" if found.low is None else f" [{signed(found.low)}, {signed(found.high)}]"
    return f"{signed(found.difference)}{ends}{'*' if found.real else ''}"


def _line(side: SideBySide, group: Group, method: str, names: Sequence[str]) -> list[str]:
    role: Role = next(row.role for row in group.runs[0].rows if row.method == method)
    values = []
    for name in names:
        cell = side.cell(group.name, method, name)
        ends = "" if cell is None or cell.low is None else f" [{number(cell.low)}, {number(cell.high)}]"
        values.append(number(None if cell is None else cell.value) + ends)
    gaps = [
        _gap(_contrast(side, group, method, versus, name))
        for name in telling(group.runs[0].metrics)
        for versus in (ADAPTED, OWN)
    ]
    return [MARKS[role] + side.titles.get(method, method), *values, *gaps]


@dataclass(frozen=True)
class Likeness:
    """Targets whose nearest sharer is about equally like them."""

    least: float
    most: float
    """Probability that the nearest sharer and the target pick the same label."""
    users: int
    """Over all seeds."""
    values: dict[str, float]
    """Method → the experiment's first metric."""


def by_likeness(group: Group, methods: Sequence[str]) -> list[Likeness]:
    """Thirds of the targets, over all seeds, by how like the nearest sharer is; none where that is not known.

    Whether borrowing can work is asked of those who have somebody to borrow from.
    """
    runs = group.runs
    if any(run.choices is None or run.choices.truth is None for run in runs):
        return []
    nearest = [
        (max(likes), place, user)
        for place, run in enumerate(runs)
        if run.choices is not None and run.choices.truth is not None
        for user, likes in zip(run.choices.targets, run.choices.truth, strict=True)
    ]
    order = sorted(nearest)
    cuts = [0, len(order) // 3, 2 * len(order) // 3, len(order)]
    return [_alike(group, order[a:b], methods) for a, b in pairwise(cuts) if b > a]


def _alike(group: Group, some: Sequence[tuple[float, int, str]], methods: Sequence[str]) -> Likeness:
    name, values = group.runs[0].metrics[0], {}
    for method in methods:
        parts = []
        for place, run in enumerate(group.runs):
            sample = sample_of(run, method, name)
            users = [user for _, run_place, user in some if run_place == place]
            if sample is not None and users:
                parts.append(sample.only(users))
        if parts:
            sums = np.sum([part.sums.sum(axis=0) for part in parts], axis=0)
            values[method] = float(metric(name).finish(sums, np.sum([part.queries.sum() for part in parts])))
    return Likeness(some[0][0], some[-1][0], len(some), values)


def likeness_table(side: SideBySide) -> str:
    """Markdown: the methods on thirds of the users by their nearest sharer's likeness, where preferences are known."""
    methods = [m for m in SHOWN if any(cell.method == m for cell in side.cells)]
    lines = [
        [
            _name(group),
            f"{part.least:.2f} to {part.most:.2f}",
            str(part.users),
            *(number(part.values.get(m)) for m in methods),
        ]
        for group in side.groups
        for part in by_likeness(group, methods)
    ]
    header = ["Experiment", "likeness", "users", *(side.titles.get(m, m) for m in methods)]
    return markdown(header, lines) if lines else ""


def overview_markdown(side: SideBySide) -> str:
    """The page: overview, one table per experiment, users by likeness."""
    parts = ["# Overview\n", overview(side), f"\n{LEGEND}"]
    for heading, table in tables(side):
        parts += [f"\n## {heading}\n", table]
    if thirds := likeness_table(side):
        parts += ["\n## Users by the likeness of their nearest sharer\n", thirds]
    return "\n".join(parts).rstrip() + "\n"
