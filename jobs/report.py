"""Stage 9: the table on the terminal and report.html, from results.json; or finished experiments side by side.

python -m jobs.report CONFIG [key=value …]        the report of one experiment
python -m jobs.report RUN RUN … [--out FOLDER]    compare experiment folders (or results.json files): overview.md,
                                                  compare.md and compare.html in FOLDER, by default runs/compare

Runs that differ in the seed alone are seeds of one experiment. Experiments are paired on the users they share.
"""

from __future__ import annotations

import sys

from rich.console import Console

from jobs.cli import guarded, stage_main
from jobs.compare import compare_runs, is_run, parse_runs
from jobs.experiment import Info, Stage
from perpcs.audit.findings import from_text
from perpcs.config import ExperimentConfig
from perpcs.evaluation.results import Results, from_dict
from perpcs.report.html import page
from perpcs.report.tables import terminal_table
from storage.files import exists, read_json, read_text, write_text
from storage.layout import Paths


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Write the report."""
    write_page_of(paths)
    return {"report": paths.report}


def write_page_of(paths: Paths) -> None:
    """report.html from what is stored: the results, and the audit where there is one."""
    audit = from_text(read_text(paths.audit), where=paths.audit) if exists(paths.audit) else None
    write_text(paths.report, page(stored_results(paths), audit=audit))


def stored_results(paths: Paths) -> Results:
    """What the evaluation wrote. Raises DataError for another schema."""
    return from_dict(read_json(paths.results), where=paths.results)


STAGE = Stage("report", "report", run, needs=("evaluate",), makes="report")


def main(cfg: ExperimentConfig) -> None:
    """The report, and the table whether or not the report was there already."""
    STAGE(cfg)
    paths = Paths.of(cfg.experiment)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(terminal_table(stored_results(paths)))
    console.print(f"results  {paths.results}\nreport   {paths.report}", highlight=False, soft_wrap=True)


def run_program(argv: list[str]) -> int:
    """The exit status of the program; runs instead of a config file are compared."""
    if any(is_run(argument) for argument in argv):
        return guarded(lambda: compare_runs(*parse_runs(argv)))
    return stage_main(main, description=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(run_program(sys.argv[1:]))
