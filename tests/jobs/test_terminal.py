"""Log lines and progress."""

import io
import logging

from rich.console import Console
from rich.progress import Progress

from jobs import terminal
from jobs.fleet_types import FleetEvent
from jobs.terminal import configure_logging, fleet_progress, progress


def test_ours_are_logged_and_others_are_not(capsys):
    configure_logging()
    configure_logging()
    logging.getLogger("perpcs.train").info("12 users %s", "x" * 200)
    logging.getLogger("ray.train").info("chatter")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.rstrip().endswith("x" * 200), "one record, one line, once"


def test_a_fleet_writes_a_line_per_event(caplog):
    with caplog.at_level(logging.INFO), fleet_progress("sharers", total=4) as on_event:
        on_event(FleetEvent("pack", "worker 0: 2 users", done=2, total=4))
        on_event(FleetEvent("failed", "user u3 failed for good: no items", done=3, failed=1, total=4))
    assert [record.getMessage() for record in caplog.records] == [
        "sharers: worker 0: 2 users; 2 of 4 done",
        "sharers: user u3 failed for good: no items; 3 of 4 done",
    ]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_progress_without_a_terminal_is_silent(capsys):
    with progress("sharers", total=2) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_bars_of_several_workers_are_one_below_the_other_and_go_when_they_end(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(terminal, "CONSOLE", console)
    monkeypatch.setattr(terminal, "BARS", Progress(console=console, transient=True))
    one, two = progress("one", total=2), progress("two", total=4, done=1)
    one.__enter__()
    advance = two.__enter__()
    advance(2)
    terminal.BARS.refresh()
    assert [(task.description, task.completed) for task in terminal.BARS.tasks] == [("one", 0), ("two", 3)]
    one.__exit__(None, None, None)
    assert [task.description for task in terminal.BARS.tasks] == ["two"] and terminal.BARS.live.is_started
    two.__exit__(None, None, None)
    assert not terminal.BARS.live.is_started
    with progress("three", total=1) as advance:
        advance(1)
        terminal.BARS.refresh()
    shown = screen.getvalue()
    assert all(name in shown for name in ("one", "two", "three"))
