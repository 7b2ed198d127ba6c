"""Stage 9: the table on the terminal and report.html, from results.json."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from jobs.cli import stage_main
from jobs.experiment import Info, Stage
from perpcs.config import ExperimentConfig
from perpcs.evaluation.results import read_results
from perpcs.report.html import write_report
from perpcs.report.tables import terminal_table
from storage.layout import Paths


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Write the report."""
    write_report(read_results(Path(paths.results)), Path(paths.report))
    return {"report": paths.report}


STAGE = Stage("report", "report", run, needs=("evaluate",), makes="report")


def main(cfg: ExperimentConfig) -> None:
    """The report, and the table whether or not the report was there already."""
    STAGE(cfg)
    paths = Paths.of(cfg.experiment)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(terminal_table(read_results(Path(paths.results))))
    console.print(f"results  {paths.results}\nreport   {paths.report}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(stage_main(main, description=__doc__))
