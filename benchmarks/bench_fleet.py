"""The fleet around the training: does the cluster's time go into packs, and how far does the coordinator carry?

Packs only sleep here, so the numbers are of the fleet and not of torch. Parts: wall time over ideal with 1, 2 and 4
workers; start-up to the first committed user; recovery after a killed worker and a killed coordinator; a simulation of
1,000 workers that lease 1,000,000 users; calls a second of the real coordinator's actor. --full: packs of 30 s.
"""

from __future__ import annotations

import argparse
import datetime
import heapq
import json
import os
import platform as machine_platform
import signal
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from jobs.coordinator import Coordinator
from jobs.fleet import RemoteDesk, run_fleet
from jobs.fleet_types import FleetEvent, PackReport, Plan
from jobs.runtime import start_local
from perpcs.config.schema import RayConfig

RESULTS = Path(__file__).resolve().parent / "results"


class Sleeper:
    """Takes `seconds` for a pack, whatever is in it; commits by creating a file per user."""

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder, self.seconds = Path(folder), seconds

    def run(self, users: Any) -> PackReport:
        """See `jobs.fleet_types.PackWorker`."""
        time.sleep(self.seconds)
        for user in users:
            (self.folder / user).touch()
        return PackReport(tuple(users), seconds=self.seconds)


def left(folder: str, users: tuple[str, ...]) -> list[str]:
    """What is not committed."""
    done = {path.name for path in Path(folder).iterdir()}
    return [user for user in users if user not in done]


def main() -> None:
    arguments = _arguments()
    seconds, packs = (30.0, 4) if arguments.full else (1.0, 4)
    report: dict[str, Any] = {
        "bench": "fleet",
        "full": arguments.full,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {machine_platform.machine()}",
        "simulation": simulate(1000, 1_000_000 if arguments.full else 100_000),
    }
    start_local(num_cpus=8)
    report["actor_calls_per_s"] = actor_calls(callers=4, calls=2000 if arguments.full else 200)
    for fleet in ("actors", "train"):
        report[fleet] = {
            "scaling": [scale(fleet, workers, seconds, packs) for workers in (1, 2, 4)],
            "recovery": {
                "worker": recover(fleet, "worker"),
                "coordinator": recover(fleet, "coordinator"),
            },
        }
    text = json.dumps(report, indent=1) + "\n"
    print(text)
    if arguments.full:
        (RESULTS / "fleet.json").write_text(text)


def scale(fleet: str, workers: int, seconds: float, packs: int) -> dict[str, float]:
    """`packs` packs per worker. wall over ideal: from the first lease to the last commit, over the packs' own time."""
    events = train(fleet, workers, seconds, packs * workers)
    first = next(e.at for e in events if e.kind == "lease")
    last = [e.at for e in events if e.kind == "pack"][-1]
    ideal = seconds * packs
    return {
        "workers": workers,
        "pack_s": seconds,
        "packs": packs * workers,
        "startup_s": round(first - events[0].at, 2),
        "first_commit_s": round(next(e.at for e in events if e.kind == "pack") - events[0].at - seconds, 2),
        "wall_over_ideal": round((last - first) / ideal, 4),
        "efficiency": round(ideal / (last - first), 4),
        "all_over_ideal": round((events[-1].at - events[0].at) / ideal, 4),
    }


def recover(fleet: str, victim: str) -> dict[str, float]:
    """Kill once after the third pack. Seconds until the next commit, and until everybody is at work again."""
    killed: list[float] = []
    places: dict[str, int] = {}

    def on_event(event: FleetEvent) -> None:
        if event.kind == "joined":
            places[event.worker] = int(event.text.split("process ")[1].rstrip(")"))
        if event.kind == "pack" and event.done >= 6 and not killed:
            killed.append(time.time())
            pids = _titled("_CoordinatorActor") if victim == "coordinator" else [places[event.worker]]
            os.kill(pids[0], signal.SIGKILL)

    events = train(fleet, 2, 0.5, 40, on_event=on_event)
    back = "restarted" if victim == "coordinator" else "joined"
    after = [e for e in events if e.at > killed[0]]
    return {
        "next_commit_s": round(next(e.at for e in after if e.kind == "pack") - killed[0], 2),
        "back_s": round(next(e.at for e in after if e.kind == back) - killed[0], 2),
        "packs_trained_again": sum(e.kind == "lost" for e in after),
    }


def train(fleet: str, workers: int, seconds: float, packs: int, on_event: Any = None) -> list[FleetEvent]:
    """Packs of two users; the events."""
    events: list[FleetEvent] = []

    def note(event: FleetEvent) -> None:
        events.append(event)
        if on_event is not None:
            on_event(event)

    with tempfile.TemporaryDirectory() as folder:
        users = tuple(f"u{i:05d}" for i in range(2 * packs))
        cfg = RayConfig(fleet=fleet, workers=workers, cpus=1.0)  # type: ignore[arg-type]
        report = run_fleet(
            partial(Sleeper, folder, seconds),
            todo=partial(left, folder, users),
            pack=2,
            cfg=cfg,
            on_event=note,
        )
        assert len(report.done) == len(users), report.failed
    return events


def simulate(workers: int, users: int, *, pack: int = 16, pack_s: float = 30.0) -> dict[str, float]:
    """The coordinator alone, in simulated time: how much of a core it needs, so how many workers one core would carry."""
    ids = tuple(f"u{i:07d}" for i in range(users))
    now, calls, born = 0.0, 0, time.process_time()
    desk = Coordinator(lambda: ids, Plan(users, pack, workers, 2, lost_s=1e9), clock=lambda: now)
    built, cursor = time.process_time() - born, ("", 0)
    queue = [(0.001 * n, str(n), None) for n in range(workers)]
    heapq.heapify(queue)
    started = time.process_time()
    while queue:
        now, worker, lease = heapq.heappop(queue)
        if lease is not None:
            desk.report(worker, lease, PackReport(lease.users, seconds=pack_s))
            calls += 1
        order = desk.order(worker)
        calls += 1
        if calls % 512 < 2:
            cursor = desk.news(cursor).cursor
        if order.lease is not None:
            for _ in range(int(pack_s / 2.0)):
                desk.beat(worker, order.lease)
                calls += 1
            heapq.heappush(queue, (now + pack_s, worker, order.lease))
    spent = time.process_time() - started
    per_worker = (2 + pack_s / 2.0) / pack_s
    return {
        "workers": workers, "users": users, "pack": pack, "pack_s": pack_s, "built_s": round(built, 2),
        "calls": calls, "calls_per_cpu_s": round(calls / spent), "simulated_s": round(now),
        "share_of_a_core": round(spent / now, 4), "workers_at_saturation": round(calls / spent / per_worker),
    }  # fmt: skip


def actor_calls(*, callers: int, calls: int) -> float:
    """Calls a second through Ray, from several processes at once: the real limit is Ray's, not the coordinator's."""
    import ray

    plan = Plan(total=1, pack=1, workers=1, retries=0)
    actor = ray.remote(num_cpus=0)(Coordinator).remote(lambda: ["u"], plan)
    lease = RemoteDesk(actor).order("0").lease

    @ray.remote(num_cpus=0)
    def call(count: int) -> None:
        desk = RemoteDesk(actor)
        for _ in range(count):
            desk.beat("0", lease)

    ray.get([call.remote(5) for _ in range(callers)])
    started = time.monotonic()
    ray.get([call.remote(calls) for _ in range(callers)])
    return round(callers * calls / (time.monotonic() - started), 1)


def _titled(name: str) -> list[int]:
    """Ray processes of this driver's cluster by title."""
    import psutil

    return [p.pid for p in psutil.Process().children(recursive=True) if name in " ".join(p.cmdline())]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="packs of 30 s; writes benchmarks/results/fleet.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
