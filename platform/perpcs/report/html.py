"""report.html: one file with everything in it, which asks nothing of the network; jinja2 escapes all text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpcs.audit.findings import Audit
from perpcs.evaluation.comparisons import verdict
from perpcs.evaluation.metrics import metric
from perpcs.evaluation.results import Comparison, Results
from perpcs.report import wording
from perpcs.report.activity import thirds
from perpcs.report.cost_plot import break_even_plot, compute_even, storage_even
from perpcs.report.heatmap import choices_plot
from perpcs.report.plots import headline_plot, storage_plot
from perpcs.report.statements import statements
from perpcs.report.svg import Picture
from perpcs.report.tables import method_rows

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
ANSWERS = {"yes": "supported", "no": "contradicted", "open": "open"}


def write_report(results: Results, path: str | Path) -> Path:
    """Writes the self-contained report of one experiment, in one step, and returns its path.

    The same results give the same bytes.
    """
    return write_page(page(results), path)


def page(results: Results, *, audit: Audit | None = None) -> str:
    """The report's HTML."""
    template = environment().get_template("report.html.j2")
    return template.render(
        results=results,
        info=results.experiment,
        metrics=[metric(name) for name in results.metrics],
        statements=statements(results),
        answers=ANSWERS,
        methods=method_rows(results),
        pictures=pictures(results),
        comparisons=grouped(results),
        costs=costs(results),
        thirds=thirds(results),
        audit=audit,
    )


def environment() -> Environment:
    """jinja2 with autoescape, our templates, and the number formats of wording.py as filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("number", "signed", "share", "share_span", "p_value", "size", "duration", "span",
             "operations", "tokens", "memory")  # fmt: skip
    made.filters |= {name: getattr(wording, name) for name in names}
    made.globals["marks"] = wording.MARKS
    return made


def pictures(results: Results) -> list[Picture]:
    """All plots that these results allow."""
    if not results.rows:
        return []
    drawn: list[Picture | None] = [headline_plot(results), storage_plot(results), break_even_plot(results)]
    if results.choices is not None:
        drawn.append(choices_plot(results.choices, {row.method: row.title for row in results.rows}))
    return [picture for picture in drawn if picture is not None]


def grouped(results: Results) -> list[dict[str, Any]]:
    """Comparisons by (metric, versus), each with its titles and verdict."""
    titles = {row.method: row.title for row in results.rows}
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for found in results.comparisons:
        groups.setdefault((found.metric, found.versus), []).append(found)
    return [
        {
            "title": f"{metric(name).title}: against {titles.get(versus, versus)}",
            "rows": [
                {"c": c, "title": titles.get(c.method, c.method), "answer": verdict(c)} for c in members
            ],
        }
        for (name, versus), members in groups.items()
    ]


def costs(results: Results) -> list[dict[str, Any]]:
    """Per method its cost, and from how many users on it takes less than an own adapter for each (OPPU)."""
    firsts = [rows[0] for rows in method_rows(results)]
    own = next((row for row in firsts if row.method == "oppu"), None)
    return [
        {
            "row": row,
            "whole": row.bytes_per_user + row.pool_bytes / max(row.users, 1),
            "storage": storage_even(row, own),
            "compute": compute_even(row, own),
        }
        for row in firsts
    ]


def write_page(text: str, path: str | Path) -> Path:
    """Writes a page in one step: a reader sees the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, "utf-8")
    draft.replace(path)
    return path
