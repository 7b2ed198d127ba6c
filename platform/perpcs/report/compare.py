"""Several experiments in one table: on the terminal, in Markdown, and as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from perpcs.evaluation.across import SideBySide
from perpcs.evaluation.comparisons import OTHER, OWN
from perpcs.evaluation.contrasts import Contrast, judged
from perpcs.evaluation.metrics import telling
from perpcs.report.compare_plot import comparison_plots
from perpcs.report.html import environment, write_page
from perpcs.report.tables import markdown
from perpcs.report.wording import UNDEFINED, number, p_value, signed, span, titled

if TYPE_CHECKING:
    from rich.table import Table

LEGEND = (
    "* real: the 95 % interval of the difference to the first experiment of the task leaves out 0, "
    "and the permutation test agrees where users are paired (Holm's correction over the methods)"
)
WITHIN = (
    "Experiment",
    "Method",
    "minus",
    "Metric",
    "difference",
    "95 % interval",
    "p (Holm)",
    "users",
    "verdict",
)
PERSONAL = (OWN, OTHER)
"""The headline: an adapter of one's own against another user's asks whether anything is personal at all."""


def lines(side: SideBySide) -> list[tuple[str, str]]:
    """(metric, method) of the table's lines, metrics outermost."""
    seen = dict.fromkeys((cell.metric, cell.method) for cell in side.cells)
    names = list(dict.fromkeys(name for name, _ in seen))
    return sorted(seen, key=lambda pair: names.index(pair[0]))


def header(side: SideBySide) -> list[str]:
    """Column titles: method, metric, and each experiment."""
    return ["Method", "Metric", *(f"{group.name}: {group.task}" for group in side.groups)]


def cells(side: SideBySide) -> list[list[str]]:
    """The table's text: value, interval, and the difference to the first experiment, starred where real."""
    names = [group.name for group in side.groups]
    return [
        [side.titles.get(method, method), titled(name), *(_cell(side, g, method, name) for g in names)]
        for name, method in lines(side)
    ]


def _cell(side: SideBySide, group: str, method: str, name: str) -> str:
    cell, difference = side.cell(group, method, name), side.difference(group, method, name)
    if cell is None:
        return UNDEFINED
    text = f"{number(cell.value)} [{span(cell.low, cell.high)}]"
    return text + (f" {signed(difference.difference)}{'*' if difference.real else ''}" if difference else "")


def within(side: SideBySide) -> list[list[str]]:
    """Text of the differences between methods under each task's telling metrics, own minus other first."""
    heads = {group.name: telling(group.runs[0].metrics) for group in side.groups}
    shown = [c for c in side.contrasts if c.metric in heads[c.group]]
    shown.sort(key=lambda c: (c.method, c.versus) != PERSONAL)
    return [_within(side, c) for c in shown]


def _within(side: SideBySide, c: Contrast) -> list[str]:
    names = [side.titles.get(name, name) for name in (c.method, c.versus)]
    found = [signed(c.difference), span(c.low, c.high, sign=True), p_value(c.p_adjusted)]
    return [c.group, *names, titled(c.metric), *found, str(c.users), c.verdict]


def comparison_markdown(side: SideBySide) -> str:
    """The side-by-side table in Markdown with its legend and notes."""
    table = markdown(header(side), cells(side))
    parts = [table, f"{LEGEND}\n", *(f"- {note}" for note in side.notes)]
    if side.contrasts:
        parts += ["\n## Which methods differ\n", markdown(list(WITHIN), within(side))]
    return "\n".join(parts).rstrip() + "\n"


def comparison_table(side: SideBySide) -> Table:
    """The side-by-side table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=Text("\n".join([LEGEND, *side.notes])), caption_justify="left")
    for i, name in enumerate(header(side)):
        table.add_column(Text(name), justify="left" if i < 2 else "right")
    for line in cells(side):
        table.add_row(*(Text(text) for text in line))
    return table


def write_comparison(side: SideBySide, path: str | Path) -> Path:
    """Writes one self-contained HTML file with the table and every difference, and returns its path."""
    template = environment().get_template("compare.html.j2")
    rows = [
        {
            "d": d,
            "title": side.titles.get(d.method, d.method),
            "word": judged(d.difference, d.metric, real=d.real),
        }
        for d in side.differences
    ]
    text = template.render(
        side=side,
        header=header(side),
        cells=cells(side),
        rows=rows,
        legend=LEGEND,
        within_header=WITHIN,
        within=within(side),
        pictures=comparison_plots(side),
    )
    return write_page(text, path)
