"""Experiments side by side as a picture: one panel per task, one line per method, one mark per experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perpcs.evaluation.across import Group, SideBySide
from perpcs.evaluation.metrics import metric
from perpcs.report.svg import Picture, render, style
from perpcs.report.wording import number, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = "osD^vP*X"
_COLORS = ("#2f6690", "#c8553d", "#878c94", "#3a7d44", "#8a6a14", "#7b4b94", "#1f7a8c", "#a23b72")
"""Colour-blind readers tell experiments by their marks, everybody else by colour too."""


def comparison_plots(side: SideBySide) -> list[Picture]:
    """One picture per task: its first metric by method, experiments beside each other with their intervals."""
    tasks = dict.fromkeys(group.task for group in side.groups)
    drawn = [
        _plot(side, [group for group in side.groups if group.task == task], f"compare-{i}")
        for i, task in enumerate(tasks)
    ]
    return [picture for picture in drawn if picture is not None]


def _plot(side: SideBySide, groups: list[Group], name: str) -> Picture | None:
    from matplotlib.figure import Figure

    found = groups[0].runs[0].metrics[:1]
    if not found:
        return None
    shown = metric(found[0])
    methods = list(dict.fromkeys(c.method for c in side.cells if c.metric == found[0]))
    with style():
        height = 1.1 + len(methods) * (0.16 + 0.1 * len(groups))
        figure = Figure(figsize=(7.6, height + 0.2 * len(groups)), layout="constrained")
        axes = figure.add_subplot()
        for place, group in enumerate(groups):
            _marks(axes, side, group, methods, (place, len(groups)))
        axes.set_yticks(range(len(methods)), [side.titles.get(m, m) for m in methods])
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.set_xlabel(shown.title + ("" if shown.higher_is_better else " (less is better)"))
        figure.legend(loc="outside lower center", fontsize=8.5)
        alt = "; ".join(_said(side, group, methods) for group in groups)
        svg = render(figure, name=name, alt=alt)
    return Picture(name, f"{groups[0].task}: {shown.title} with 95 % intervals over users.", svg, alt)


def _marks(axes: Axes, side: SideBySide, group: Group, methods: list[str], place: tuple[int, int]) -> None:
    index, count = place
    color, mark = _COLORS[index % len(_COLORS)], _MARKS[index % len(_MARKS)]
    shift = 0.62 * ((index + 0.5) / count - 0.5)
    for line, method in enumerate(methods):
        cell = side.cell(group.name, method, group.runs[0].metrics[0])
        if cell is None:
            continue
        if cell.low is not None and cell.high is not None:
            axes.plot([cell.low, cell.high], [line + shift] * 2, color=color, linewidth=1.4)
        axes.plot([cell.value], [line + shift], mark, color=color, markersize=4.5)
    axes.plot([], [], mark, color=color, markersize=5, label=group.name)


def _said(side: SideBySide, group: Group, methods: list[str]) -> str:
    name = group.runs[0].metrics[0]
    cells = [(m, side.cell(group.name, m, name)) for m in methods]
    values = [
        f"{side.titles.get(m, m)} {number(c.value)} ({span(c.low, c.high)})"
        for m, c in cells
        if c is not None
    ]
    return f"{group.name}: {', '.join(values)}"
