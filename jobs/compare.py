"""Experiments side by side, for `python -m jobs.report RUN RUN …`: the table, overview.md, compare.md and compare.html."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jobs.cli import Parser
from perpcs.evaluation.across import compare
from perpcs.evaluation.results import Results, read_results
from perpcs.report.compare import comparison_markdown, comparison_table, write_comparison
from perpcs.report.html import write_page
from perpcs.report.overview import overview_markdown

OUT = "runs/compare"
"""Where the pages go unless --out says otherwise."""


def is_run(argument: str) -> bool:
    """Whether an argument names a finished experiment, not a config file or a setting."""
    return Path(argument).is_dir() or argument.endswith(".json")


def parse_runs(argv: Sequence[str]) -> tuple[list[str], str]:
    """(runs, folder for the pages) of a command line."""
    parser = Parser(prog="python -m jobs.report")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", default=OUT, metavar="FOLDER")
    found = parser.parse_args(argv)
    return found.runs, found.out


def results_of(run: str) -> Results:
    """The results of an experiment folder, or of a results.json itself."""
    path = Path(run)
    return read_results(path / "results.json" if path.is_dir() else path)


def compare_runs(runs: Sequence[str], out: str = OUT) -> None:
    """Read all runs, then write overview.md, compare.md and compare.html to `out` and the table to the terminal.

    Raises DataError for fewer than two runs, one that is not finished, and a seed that comes twice.
    """
    side = compare([results_of(run) for run in runs])
    page = write_comparison(side, Path(out) / "compare.html")
    text = write_page(comparison_markdown(side), Path(out) / "compare.md")
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(comparison_table(side))
    short = write_page(overview_markdown(side), Path(out) / "overview.md")
    console.print(f"overview  {short}\nmarkdown  {text}\npage      {page}", highlight=False, soft_wrap=True)
