"""How far an experiment is: `python -m jobs.status EXPERIMENT`, a folder or an object store's URI, finished or at work.

Reads the store and the event log only: it needs no Ray and disturbs nobody.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from jobs.claim import driver_of
from jobs.cli import DONE, Parser, guarded
from jobs.events import Event, read_events
from jobs.todo import missing, selected
from perpcs.errors import StoreError
from storage.files import exists, join, read_json
from storage.layout import Paths
from storage.population import read_ids

STAGES = ("ingest", "adapt", "select_sharers", "train_sharers", "train_own", "index", "assemble", "evaluate",
          "report")  # fmt: skip
OPTIONAL = {
    "train_prompt_tuning": "index",
    "train_ia3": "index",
    "train_joint": "assemble",
    "train_warm": "evaluate",
}
"""Stages that only some methods need, shown where they were begun, by the stage before which they run."""
FLEETS = {"train_sharers": "sharers", "train_own": "own adapters", "train_warm": "warm adapters"}
"""Stages that train users, with their name in the event log."""
RECENT_S = 300.0
"""The rate is over the packs of the last so many seconds before the newest."""


@dataclass(frozen=True)
class Training:
    """How far a stage that trains users is. rate: users a second lately; eta_s: seconds until all are done."""

    users: int
    done: int
    left: int
    failed: dict[str, str]
    """Error by user, of those that failed last time and are not committed since."""
    rate: float = 0.0
    eta_s: float | None = None
    workers: tuple[str, ...] = ()
    """Those that the newest driver's fleet has."""


@dataclass(frozen=True)
class Status:
    """The state of an experiment."""

    experiment: str
    stages: dict[str, str]
    """done, begun or open, in the order of the flow."""
    training: dict[str, Training]
    driver: dict[str, Any] | None
    """The sign of a driver that works or was killed, and the age of the sign in seconds."""
    events: tuple[Event, ...] = field(default=())


def status_of(paths: Paths, *, last: int = 5) -> Status:
    """The state of an experiment with its `last` events. Raises StoreError when there is nothing."""
    stages = _stages(paths)
    driver = driver_of(paths)
    if driver is None and set(stages.values()) == {"open"}:
        raise StoreError(f"{paths.root}: there is no experiment here; check the path")
    events = list(read_events(paths))
    if driver is not None:
        driver = {**driver, "age_s": round(time.time() - driver["at"], 1)}
    return Status(
        experiment=paths.root,
        stages=stages,
        training={
            stage: _training(
                paths, stage, [e for e in events if e["stage"] == what], working=driver is not None
            )
            for stage, what in FLEETS.items()
            if stages.get(stage, "open") != "open"
        },
        driver=driver,
        events=tuple(events[len(events) - last :] if last else ()),
    )


def _stages(paths: Paths) -> dict[str, str]:
    order = [
        name
        for stage in STAGES
        for name in (*(o for o, before in OPTIONAL.items() if before == stage), stage)
    ]
    states = {name: _state(paths, name) for name in order}
    return {name: state for name, state in states.items() if name in STAGES or state != "open"}


def _state(paths: Paths, stage: str) -> str:
    path = paths.marker(stage)
    if not exists(path):
        return "open"
    return "done" if read_json(path)["finished"] else "begun"


def _training(paths: Paths, stage: str, events: Sequence[Event], *, working: bool) -> Training:
    targets = partial(read_ids, paths.population, "targets")
    run = newest_run(events)
    # The newest driver's log tells which settings' pool of several it fills.
    warm = join(paths.own_warm, run[-1].get("pool", "none") if run else "none")
    wanted: Callable[[], Sequence[str]] = partial(selected, paths) if stage == "train_sharers" else targets
    uri = {"train_sharers": paths.pool, "train_own": paths.own, "train_warm": warm}[stage]
    users, left = wanted(), set(missing(uri, wanted))
    failed = {user: e["text"] for e in run if e["kind"] == "failed" for user in e["users"] if user in left}
    rate = rate_of(run)
    over = bool(run) and run[-1]["kind"] == "ended"
    waiting = len(left) - len(failed)
    return Training(
        users=len(users),
        done=len(users) - len(left),
        left=waiting,
        failed=failed,
        rate=round(rate, 3),
        eta_s=round(waiting / rate) if rate and working and not over else None,
        workers=() if over or not working else workers_of(run),
    )


def newest_run(events: Sequence[Event]) -> Sequence[Event]:
    """The events since the newest driver began."""
    starts = [n for n, event in enumerate(events) if event["kind"] == "began"]
    return events[starts[-1] :] if starts else events


def rate_of(run: Iterable[Event]) -> float:
    """Users a second over the packs of the last RECENT_S seconds before the newest; 0 without a pack."""
    packs = [event for event in run if event["kind"] in ("pack", "late")]
    recent = [event for event in packs if event["at"] > packs[-1]["at"] - RECENT_S]
    if not recent:
        return 0.0
    began = min(event["at"] - event["seconds"] for event in recent)
    return float(sum(len(event["users"]) for event in recent) / max(recent[-1]["at"] - began, 1e-3))


def workers_of(run: Iterable[Event]) -> tuple[str, ...]:
    """Workers that joined and are not known to be lost since, with where they run."""
    found: dict[str, str] = {}
    for event in run:
        if event["kind"] == "joined":
            found[event["worker"]] = event["text"]
        elif event["kind"] == "lost":
            found.pop(event["worker"], None)
    return tuple(found.values())


def text_of(status: Status) -> str:
    """For people."""
    lines = [status.experiment, driver_text(status.driver), ""]
    for stage, state in status.stages.items():
        lines.append(f"  {stage:<15} {state}{training_text(status.training.get(stage))}")
    for training in status.training.values():
        lines += [f"    {text}" for text in training.workers]
        lines += [f"    {text}" for text in training.failed.values()]
    if status.events:
        lines += ["", "last events"]
    for event in status.events:
        when = time.strftime("%H:%M:%S", time.localtime(event["at"]))
        lines.append(f"  {when} {event['stage']}: {event['text']}")
    return "\n".join(lines) + "\n"


def driver_text(driver: dict[str, Any] | None) -> str:
    """Who works on it."""
    if driver is None:
        return "no driver at work"
    return (
        f"driver on {driver['host']}, process {driver['process']}; its last sign is {driver['age_s']:.0f} s old"
        + (" (it was killed, or its clock differs)" if driver["age_s"] > 60 else "")
    )


def training_text(training: Training | None) -> str:
    """One line: done of all, failures, rate and time left."""
    if training is None:
        return ""
    parts = [f"{training.done} of {training.users} users", f"{training.left} left"]
    if training.failed:
        parts.append(f"{len(training.failed)} failed")
    if training.rate:
        parts.append(f"{training.rate:.2g} users/s")
    if training.eta_s is not None:
        parts.append(f"about {duration(training.eta_s)} to go with {len(training.workers)} workers")
    return ", " + ", ".join(parts)


def duration(seconds: float) -> str:
    """Such as 2 h 05 min, 3 min, 40 s."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    return guarded(partial(_show, argv))


def _show(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="python -m jobs.status",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.wanted = "name an experiment, e.g. {} runs/quickstart"
    parser.add_argument("experiment", metavar="EXPERIMENT", help="folder or URI, e.g. runs/quickstart")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument(
        "--events", type=int, default=5, metavar="N", help="how many last events (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    status = status_of(Paths.of(arguments.experiment), last=max(0, arguments.events))
    text = (
        json.dumps(asdict(status), indent=2, ensure_ascii=False) + "\n" if arguments.json else text_of(status)
    )
    sys.stdout.write(text)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
