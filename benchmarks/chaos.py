"""Kills while a fleet trains: `python -m benchmarks.chaos [--users 300 --fleet train]`, or `make chaos`.

A cluster of several raylets on this machine, with fake GPUs. The sharers of one small population are trained twice:
undisturbed, and while workers, the coordinator, a whole node and the driver are killed at random (SIGKILL), the driver
being submitted again each time. Then both pools must hold the same users with the same adapters, every user once, and
the event log must explain every one of them. Exit status 1 and the differences where that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from jobs import adapt, ingest, select_sharers, train_sharers
from jobs.events import read_events
from jobs.runtime import connect
from perpcs.config import load_config
from storage.layout import Paths
from storage.pool import Pool

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
population:
  synthetic: {{archetypes: 2, base_users: 12, candidates: {users}, targets: 2, history: 12, queries: 2}}
prompt: {{max_length: 48}}
base:
  tiny: {{hidden: 32, layers: 2, vocab: 400, steps: 20, batch: 16, lr: 1e-2}}
  adapt: {{steps: 2, batch: 8, rank: 4}}
lora: {{rank: 4}}
select: {{strategy: active, count: {users}}}
pool:
  train: {{steps: {steps}, batch: 4, pack: 2, lr: 1e-2}}
  gate: {{steps: 6, batch: 4}}
  sketch: 8
ray: {{fleet: {fleet}, workers: {workers}, cpus: 0.5, gpus: 0.5, threads: 1, retries: 20, address: "{address}"}}
"""
"""Workers die more often here than in a year elsewhere, so users get more than the usual two retries."""
TUNED = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A dead node is noticed in seconds instead of half a minute."""
TOLERANCE = 1e-4
"""Largest difference between a number of two adapters trained in packs of other sizes."""


class World:
    """The cluster, and what can be killed in it. The head holds the driver and the coordinator, the others the workers."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": 4,
            "include_dashboard": False,
            "_system_config": TUNED,
            "object_store_memory": 100 << 20,
        }
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._add() for _ in range(nodes)]

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=100 << 20)

    def processes(self, name: str) -> list[psutil.Process]:
        """Live Ray workers of the cluster whose title contains `name`."""
        found = []
        for node in [self.cluster.head_node, *self.nodes]:
            for raylet in node.all_processes.get("raylet", []):
                if psutil.pid_exists(raylet.process.pid):
                    found += _children(raylet.process.pid, name)
        return found

    def kill_node(self) -> bool:
        """A node dies with all its processes; an empty one joins."""
        node = self.nodes.pop(0)
        raylet = node.all_processes["raylet"][0].process.pid
        workers = _children(raylet, "ray::")
        self.cluster.remove_node(node, allow_graceful=False)
        for worker in workers:
            _kill(worker)
        self.nodes.append(self._add())
        return True

    def kill_one(self, name: str, choose: random.Random) -> bool:
        """SIGKILL to one process of that name; False where there is none just now."""
        found = self.processes(name)
        return bool(found) and _kill(choose.choice(found))

    def close(self) -> None:
        """End the cluster."""
        self.cluster.shutdown()


def main() -> int:
    arguments = _arguments()
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="perpcs-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    world = World(arguments.nodes)
    try:
        config = folder / "chaos.yaml"
        config.write_text(
            CONFIG.format(
                users=arguments.users,
                steps=arguments.steps,
                fleet=arguments.fleet,
                workers=2 * arguments.nodes,
                address=world.cluster.address,
            )
        )
        calm_s = undisturbed(config, folder)
        kills, killed_s = disturb(world, config, folder / "killed", arguments)
    finally:
        world.close()
    problems = list(compare(folder / "calm", folder / "killed"))
    summary = {
        "users": arguments.users, "fleet": arguments.fleet, "nodes": arguments.nodes, "seed": arguments.seed,
        "kills": kills, "undisturbed_s": round(calm_s, 1), "disturbed_s": round(killed_s, 1),
        "events": dict(Counter(e["kind"] for e in read_events(Paths.of(str(folder / "killed"))))),
        "problems": problems,
    }  # fmt: skip
    print(json.dumps(summary, indent=1))
    if not arguments.folder and not problems:
        shutil.rmtree(folder)
    return 1 if problems else 0


def undisturbed(config: Path, folder: Path) -> float:
    """Everything up to the training, a copy of that for the disturbed run, and the training; seconds of the training."""
    cfg = load_config(config, [f"experiment={folder / 'calm'}"])
    with connect(cfg.ray):
        for module in (ingest, adapt, select_sharers):
            module.STAGE(cfg)
        shutil.copytree(folder / "calm", folder / "killed")
        started = time.monotonic()
        train_sharers.STAGE(cfg)
    return time.monotonic() - started


def disturb(
    world: World, config: Path, folder: Path, arguments: argparse.Namespace
) -> tuple[dict[str, int], float]:
    """Train to the end while things are killed; (how often each was, seconds)."""
    choose, started, kills = random.Random(arguments.seed), time.monotonic(), Counter[str]()
    worker = "ray::_Worker" if arguments.fleet == "actors" else "ray::RayTrainWorker"
    deeds: dict[str, Callable[[], bool]] = {
        "worker": lambda: world.kill_one(worker, choose),
        "coordinator": lambda: world.kill_one("ray::_CoordinatorActor", choose),
        "node": world.kill_node,
        "driver": lambda: bool(driver.kill() or True),
    }
    plan = [deed for deed in deeds for _ in range(getattr(arguments, f"{deed}s_killed"))]
    choose.shuffle(plan)
    driver, committed = _start("train_sharers", config, folder), 0
    while driver.poll() != 0:
        if driver.poll() is not None:
            driver = _start("train_sharers", config, folder)
        now = _committed(folder)
        # Between two deeds something must have been committed, as in real life: else nothing would ever end.
        if plan and now > committed and deeds[plan[-1]]():
            kills[plan.pop()] += 1
            committed = now
        time.sleep(choose.uniform(0.2, 2 * arguments.every))
        if time.monotonic() - started > arguments.limit:
            driver.kill()
            raise SystemExit(
                f"chaos: not done after {arguments.limit:.0f} s, {now} users committed, {dict(kills)}"
            )
    return dict(kills), time.monotonic() - started


def compare(calm: Path, killed: Path) -> Iterator[str]:
    """What differs between the pools, and what the killed run's event log does not explain."""
    one, two = (Pool.open(str(folder / "pool")) for folder in (calm, killed))
    views = one.view(), two.view()
    if views[0].ids != views[1].ids:
        yield f"other users: {sorted(set(views[0].ids) ^ set(views[1].ids))}"
        return
    if len(set(views[1].ids)) != len(views[1].ids):
        yield "a user is in the pool twice"
    for user in views[0].ids:
        off = _distance(views[0].adapter(user), views[1].adapter(user))
        if not off < TOLERANCE:
            yield f"user {user}: adapters differ by {off:.2g}"
    yield from unexplained(killed, views[1].ids)


def unexplained(folder: Path, users: tuple[str, ...]) -> Iterator[str]:
    """Committed users of whom the log says neither that their pack was done, nor that it was in work when something died."""
    told: set[str] = set()
    leases: set[str] = set()
    for event in read_events(Paths.of(str(folder))):
        if event["kind"] in ("pack", "late"):
            told |= set(event["users"])
        elif event["kind"] in ("lost", "lease"):
            leases |= set(event["users"])
    yield from (
        f"user {user}: committed, and the log does not know why"
        for user in users
        if user not in told | leases
    )


def _distance(left: Any, right: Any) -> float:
    pairs = [(piece, right.pieces[name]) for name, piece in left.pieces.items()]
    return max(
        float(np.abs(getattr(a, part) - getattr(b, part)).max())
        for a, b in pairs
        for part in ("a", "b", "gate")
    )


def _committed(folder: Path) -> int:
    pool = folder / "pool"
    return len(Pool.open(str(pool)).committed()) if (pool / "sharers.lance").exists() else 0


def _start(stage: str, config: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", f"jobs.{stage}", str(config), f"experiment={folder}"]
    with Path(f"{folder}.log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=dict(os.environ))


def _children(raylet: int, name: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(raylet).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # ended meanwhile
            continue
    return found


def _kill(process: psutil.Process) -> bool:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.Error:
        return False
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument(
        "--steps", type=int, default=60, help="training steps of a user (default: %(default)s)"
    )
    parser.add_argument("--fleet", choices=["actors", "train"], default="actors")
    parser.add_argument(
        "--nodes", type=int, default=2, help="of one fake GPU and two workers (default: %(default)s)"
    )
    for deed, count in {"worker": 12, "coordinator": 4, "node": 2, "driver": 3}.items():
        text = f"{deed}s to kill (default: %(default)s)"
        parser.add_argument(f"--{deed}s-killed", type=int, default=count, metavar="N", help=text)
    parser.add_argument(
        "--every", type=float, default=3.0, help="mean seconds between two looks (default: %(default)s)"
    )
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which it has failed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="", help="keep everything here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
