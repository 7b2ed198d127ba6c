"""report.html of a sweep: which setting to use, the pictures, and every setting in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perpcs.report.html import environment, write_page
from perpcs.report.svg import Picture
from perpcs.report.sweep_plots import cost_plot, curves, heat_map, levels, scatter, settings, short, title
from perpcs.report.wording import duration, number, size, span
from perpcs.sweep.results import Point, ranked
from perpcs.sweep.space import METHOD, Axis

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class SweepReport:
    """What the page shows. points: settings with all their seeds; unfinished: how many lack some, or ended early."""

    name: str
    points: Sequence[Point]
    axes: Sequence[Axis]
    recommended: Point
    unfinished: int
    grid: bool
    command: str


def write_sweep_report(report: SweepReport, path: str | Path) -> Path:
    """Writes one self-contained file, in one step, and returns its path."""
    template = environment().get_template("sweep.html.j2")
    text = template.render(
        report=report,
        best=ranked(report.points)[0],
        settings=settings,
        title=title(report.points),
        pictures=sweep_pictures(report),
        header=header(report),
        lines=[cells(report, point) for point in ranked(report.points)],
    )
    return write_page(text, path)


def sweep_pictures(report: SweepReport) -> list[Picture]:
    """Heat map and curves of a grid, dots of a search; accuracy against bytes and against seconds."""
    keys = varied(report)
    drawn: list[Picture] = []
    if report.grid:
        if len(keys) >= 2:
            x, y = sorted(keys, key=lambda k: -len(levels(report.points, k)))[:2]
            drawn.append(heat_map(sliced(report, x, y), x, y))
        drawn += [curves(sliced(report, key), key) for key in keys]
    else:
        logs = {axis.key: axis.log for axis in report.axes}
        numbers = [k for k in keys if all(type(v) in (int, float) for v in levels(report.points, k))]
        drawn += [scatter(report.points, key, log=logs.get(key, False)) for key in numbers]
    drawn.append(
        cost_plot(report.points, "bytes per user", lambda p: p.bytes_per_user, marked=report.recommended)
    )
    drawn.append(cost_plot(report.points, "seconds per user", lambda p: p.seconds, marked=report.recommended))
    return drawn


def varied(report: SweepReport) -> list[str]:
    """Axes, the method aside, with more than one value."""
    keys = [axis.key for axis in report.axes if axis.key != METHOD]
    return [key for key in keys if len(levels(report.points, key)) > 1]


def sliced(report: SweepReport, *free: str) -> list[Point]:
    """The settings that differ from the recommended one in the method and in `free` keys only."""
    fixed = [key for key in report.recommended.values if key not in (*free, METHOD)]
    return [p for p in report.points if all(p.values[k] == report.recommended.values[k] for k in fixed)]


def header(report: SweepReport) -> list[str]:
    """Column titles of the table."""
    keys = [axis.key for axis in report.axes]
    return [*keys, title(report.points), "95 % interval", "by seed", "bytes per user", "pool", "seconds"]


def cells(report: SweepReport, point: Point) -> list[str]:
    """One setting's line of the table."""
    return [
        *(short(point.values[axis.key]) for axis in report.axes),
        number(point.value),
        span(point.low, point.high),
        " / ".join(map(number, point.by_seed)),
        size(point.bytes_per_user),
        size(point.pool_bytes),
        duration(point.seconds),
    ]


def sweep_table(report: SweepReport, *, most: int = 10) -> Table:
    """The best settings for the terminal, the recommended one in bold."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(f"{report.name}: the best of {len(report.points)} settings"),
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.title_justify = "left"
    for i, name in enumerate(header(report)):
        table.add_column(Text(name), justify="left" if i == 0 else "right")
    shown = ranked(report.points)[:most]
    if report.recommended not in shown:
        shown.append(report.recommended)
    for point in shown:
        table.add_row(*map(Text, cells(report, point)), style="bold" if point is report.recommended else "")
    return table
