"""A sweep in pictures: heat maps of two axes, curves of one, and accuracy against cost with its Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from perpcs.evaluation.methods import METHODS
from perpcs.evaluation.metrics import metric
from perpcs.report.svg import INK, SOFT, Picture, render, style
from perpcs.report.wording import number, size
from perpcs.sweep.results import Point, front
from perpcs.sweep.space import METHOD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#2f6690", "#c8553d", "#3f8f5b", "#8a5aa8", "#b58b1b", "#4a9aa5", "#a3476b", "#6b7280")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_ACROSS, _MOST_CELLS = 2, 15
"""Heat maps per line; values per side up to which cells carry their numbers."""


def heat_map(points: Sequence[Point], x: str, y: str) -> Picture:
    """The metric over two axes, a panel per method, all on one scale. `points`: one per cell and method."""
    from matplotlib.figure import Figure

    methods = names_of(points)
    xs, ys = (levels(points, key) for key in (x, y))
    lines = -(-len(methods) // _ACROSS)
    values = [p.value for p in points]
    with style():
        figure = Figure(figsize=(7.6, lines * (0.9 + 0.34 * len(ys))), layout="constrained")
        image: Any = None
        for index, method in enumerate(methods):
            axes = figure.add_subplot(lines, min(_ACROSS, len(methods)), index + 1)
            cells = {(p.values[y], p.values[x]): p.value for p in points if p.values[METHOD] == method}
            matrix = [[cells.get((b, a), float("nan")) for a in xs] for b in ys]
            image = axes.imshow(
                matrix, cmap="viridis", aspect="auto", origin="lower", vmin=min(values), vmax=max(values)
            )
            _cells(axes, matrix, (min(values) + max(values)) / 2)
            axes.set_title(METHODS[method].title, fontsize=9)
            axes.set_xticks(range(len(xs)), [short(v) for v in xs])
            axes.set_yticks(range(len(ys)), [short(v) for v in ys])
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.tick_params(length=0)
        figure.colorbar(image, ax=figure.axes, shrink=0.85, label=title(points))
        best = max(points, key=lambda p: metric(p.metric).sign * p.value)
        alt = f"Heat map of {title(points)} over {x} and {y}: best at {said(best)}"
        svg = render(figure, name="heat", alt=alt)
    caption = (
        f"{title(points)} over {x} and {y}, mean over seeds; all panels on one scale. Best: {said(best)}."
    )
    return Picture("heat", caption, svg, alt)


def _cells(axes: Axes, matrix: Sequence[Sequence[float]], middle: float) -> None:
    if max(len(matrix), len(matrix[0])) > _MOST_CELLS:
        return
    for row, line in enumerate(matrix):
        for column, value in enumerate(line):
            if value == value:
                color = "#fdfdfd" if value < middle else "#101010"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)


def curves(points: Sequence[Point], x: str) -> Picture:
    """The metric along one axis with 95 % intervals, a line per method; equal steps where values are no numbers."""
    from matplotlib.figure import Figure

    order = levels(points, x)
    numeric = all(type(v) in (int, float) for v in order)
    with style():
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for index, method in enumerate(names_of(points)):
            line = sorted(
                (p for p in points if p.values[METHOD] == method), key=lambda p: order.index(p.values[x])
            )
            at = [p.values[x] if numeric else order.index(p.values[x]) for p in line]
            color = COLORS[index % len(COLORS)]
            if all(p.low is not None for p in line):
                axes.fill_between(
                    at,
                    [p.low or 0 for p in line],
                    [p.high or 0 for p in line],
                    color=color,
                    alpha=0.15,
                    linewidth=0,
                )
            axes.plot(
                at,
                [p.value for p in line],
                MARKERS[index % len(MARKERS)] + "-",
                color=color,
                markersize=5,
                label=METHODS[method].title,
            )
        if not numeric:
            axes.set_xticks(range(len(order)), [short(v) for v in order])
        _finish(axes, x, points)
        alt = f"{title(points)} by {x}: " + "; ".join(said(p) for p in points)
        svg = render(figure, name=f"curve-{slug(x)}", alt=alt)
    caption = (
        f"{title(points)} by {x}, mean over seeds with 95 % intervals over users; "
        "the same users and questions everywhere."
    )
    return Picture(f"curve-{slug(x)}", caption, svg, alt)


def scatter(points: Sequence[Point], x: str, *, log: bool = False) -> Picture:
    """The metric of every tried setting against one axis: for searches, where no two settings share their other values."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(7.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for index, method in enumerate(names_of(points)):
            dots = [p for p in points if p.values[METHOD] == method]
            axes.plot(
                [p.values[x] for p in dots],
                [p.value for p in dots],
                MARKERS[index % len(MARKERS)],
                color=COLORS[index % len(COLORS)],
                markersize=5,
                alpha=0.8,
                label=METHODS[method].title,
            )
        if log:
            axes.set_xscale("log")
        _finish(axes, x, points)
        alt = f"{title(points)} of {len(points)} settings against {x}"
        svg = render(figure, name=f"dots-{slug(x)}", alt=alt)
    return Picture(
        f"dots-{slug(x)}",
        f"{title(points)} of every tried setting against {x}; other values differ from dot to dot.",
        svg,
        alt,
    )


def cost_plot(
    points: Sequence[Point], what: str, cost: Callable[[Point], float], *, marked: Point
) -> Picture:
    """The metric against a cost (log), every setting a dot, the Pareto front a line, the recommended one ringed."""
    from matplotlib.figure import Figure

    best = front(points, cost)
    floor = min([c for p in points if (c := cost(p)) > 0], default=1.0) / 3
    with style():
        figure = Figure(figsize=(7.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for index, method in enumerate(names_of(points)):
            dots = [p for p in points if p.values[METHOD] == method]
            axes.plot(
                [max(cost(p), floor) for p in dots],
                [p.value for p in dots],
                MARKERS[index % len(MARKERS)],
                color=COLORS[index % len(COLORS)],
                markersize=4.5,
                alpha=0.65,
                label=METHODS[method].title,
            )
        axes.plot(
            [max(cost(p), floor) for p in best],
            [p.value for p in best],
            "-",
            color=INK,
            linewidth=1,
            drawstyle="steps-post",
            label="Pareto front",
        )
        axes.plot(
            [max(cost(marked), floor)],
            [marked.value],
            "o",
            markersize=12,
            markerfacecolor="none",
            color=SOFT,
            label="recommended",
        )
        _finish(axes, what, points)
        alt = f"{title(points)} against {what}; Pareto front: " + "; ".join(said(p) for p in best)
        svg = render(figure, name=f"cost-{slug(what)}", alt=alt)
    return Picture(
        f"cost-{slug(what)}", f"{title(points)} against {what}. Ringed: the recommended setting.", svg, alt
    )


def _finish(axes: Axes, x: str, points: Sequence[Point]) -> None:
    axes.grid(axis="both")
    axes.set_xlabel(x)
    axes.set_ylabel(title(points))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def names_of(points: Sequence[Point]) -> list[str]:
    """Methods, in the order of their first point."""
    return list(dict.fromkeys(p.values[METHOD] for p in points))


def levels(points: Sequence[Point], key: str) -> list[Any]:
    """The values of an axis: numbers in order, others as they come."""
    found = list(dict.fromkeys(p.values[key] for p in points))
    return sorted(found) if all(type(v) in (int, float) for v in found) else found


def title(points: Sequence[Point]) -> str:
    """The metric's name."""
    made = metric(points[0].metric)
    return made.title + ("" if made.higher_is_better else " (less is better)")


def said(point: Point) -> str:
    """A setting and its value in words."""
    return f"{settings(point)}: {number(point.value)}, {size(point.bytes_per_user)}"


def settings(point: Point) -> str:
    """A setting in words: the method, then key=value."""
    rest = [f"{key}={short(value)}" for key, value in point.values.items() if key != METHOD]
    return ", ".join([METHODS[point.values[METHOD]].title, *rest])


def short(value: Any) -> str:
    """A value as it is shown."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def slug(text: str) -> str:
    """A name for ids."""
    return "".join(c if c.isalnum() else "-" for c in text)
