"""The results table for the terminal (rich) and for Markdown, from the same cells."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from perpcs.evaluation.results import Results, Row
from perpcs.report.wording import MARKS, duration, number, share, size, span, titled

if TYPE_CHECKING:
    from rich.table import Table

LEGEND = "★ ours   ○ control   brackets: 95 % interval by bootstrap over users"
_STYLES = {"method": "", "ours": "bold", "control": "dim"}


def headers(results: Results) -> list[str]:
    """Column titles: method, each metric, share of OPPU's gain, storage, time."""
    return ["Method", *map(titled, results.metrics), "of OPPU's gain", "per user", "time"]


def method_rows(results: Results) -> list[list[Row]]:
    """Per method its rows, one per metric, in the order of results.metrics."""
    return [[row for row in results.rows if row.method == method] for method in results.methods]


def cells(results: Results, *, short: bool = False) -> list[list[str]]:
    """The table's text, one list per method; short leaves out the intervals of all but the first metric."""
    table = []
    for rows in method_rows(results):
        first = rows[0]
        values = [f"{number(row.value)} [{span(row.low, row.high)}]" for row in rows]
        if short:
            values = [values[0].replace(" to ", "–"), *(number(row.value) for row in rows[1:])]
        gain = share(results.gain(first.method, first.metric)) if first.method != "oppu" else "100%"
        cost = [size(first.bytes_per_user), duration(first.seconds)]
        table.append([MARKS[first.role] + first.title, *values, gain, *cost])
    return table


def terminal_table(results: Results) -> Table:
    """A rich table that is readable from 80 columns on; text from the data is shown as it is, never read as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    info = results.experiment
    title = f"{info.name}: {info.task}, {info.targets} targets, seed {info.seed}"
    table = Table(title=Text(title), caption=Text(LEGEND), box=SIMPLE_HEAD, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    for i, name in enumerate(headers(results)):
        # Only the first column may wrap, and it keeps enough to be read: the others are numbers.
        table.add_column(
            Text(name.replace(" gain", "\ngain")),
            justify="right" if i else "left",
            no_wrap=i > 0,
            min_width=0 if i else 20,
        )
    roles = {row.method: row.role for row in results.rows}
    for method, line in zip(results.methods, cells(results, short=True), strict=True):
        table.add_row(*(Text(text) for text in line), style=_STYLES[roles[method]])
    return table


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    head = [[_plain(text) for text in header], [":--", *["--:"] * (len(header) - 1)]]
    body = [[_plain(row[0]), *row[1:]] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [*head, *body]) + "\n"


def _plain(text: str) -> str:
    """A name that Markdown shows as it is: no table border, markup or HTML comes out of it."""
    text = html.escape(" ".join(text.split()), quote=False)
    return "".join("\\" + sign if sign in "\\`*_[]|#" else sign for sign in text)


def markdown_table(results: Results) -> str:
    """The results table in Markdown, with its legend."""
    return markdown(headers(results), cells(results)) + f"\n{LEGEND}\n"
