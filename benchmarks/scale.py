"""Thousands of users through the whole flow, and the memory of every process of it over time.

Runs `python -m jobs.pipeline configs/scale_5000.yaml` (or, with --head ADDRESS, the same as a submitted job on the cluster
of this machine whose dashboard is there), looks every few seconds at what driver, coordinator, workers and Ray hold, and
writes benchmarks/results/scale.json. Flat means: the last third of the training stages needs no more than the second.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform as machine_platform
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

from jobs.events import read_events
from storage.describe import stats
from storage.layout import Paths
from storage.pool import Pool

ROOT = Path(__file__).resolve().parents[1]
ROLES = {
    "jobs.pipeline": "driver",
    "ray::_CoordinatorActor": "coordinator",
    "ray::_Worker": "workers",
    "ray::RayTrainWorker": "workers",
    "ray::narrate": "tasks",
    "raylet": "raylet",
    "gcs_server": "gcs",
}
"""By a part of the command line; the first that fits."""
MIB = 1 << 20


def main() -> int:
    arguments = _arguments()
    overrides = [f"experiment={arguments.experiment}", *arguments.overrides]
    command = [sys.executable, "-m", "jobs.pipeline", "configs/scale_5000.yaml", *overrides]
    env = dict(os.environ)
    if arguments.head:
        runtime_env = ["--working-dir", ".", "--runtime-env", "configs/ray/job.yaml"]
        command = [
            "ray",
            "job",
            "submit",
            "--address",
            arguments.head,
            *runtime_env,
            "--",
            "python",
            *command[1:],
        ]
    started, samples = time.time(), []
    run = subprocess.Popen(command, cwd=ROOT, env=env)
    while run.poll() is None:
        samples.append({"at": round(time.time() - started, 1), **look()})
        time.sleep(arguments.every)
    report = {
        "bench": "scale",
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {machine_platform.machine()}",
        "command": " ".join(["python", *command[1:]]) if not arguments.head else " ".join(command),
        "status": run.returncode,
        "seconds": round(time.time() - started, 1),
        **(summary(Paths.of(arguments.experiment), samples, started) if run.returncode == 0 else {}),
        "samples": thinned(samples, 200),
    }
    Path(arguments.out).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "samples"}, indent=1))
    return run.returncode


def look() -> dict[str, float]:
    """MiB of private memory by role (of several processes: the largest and the sum), and of Ray's object store in use."""
    found: dict[str, list[float]] = defaultdict(list)
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        role = next((role for part, role in ROLES.items() if part in line), None)
        if role is None:
            continue
        try:
            memory = process.memory_info()
        except psutil.Error:  # ended meanwhile
            continue
        found[role].append((memory.rss - getattr(memory, "shared", 0)) / MIB)
    seen = {role: round(max(values), 1) for role, values in found.items()}
    seen |= {f"{role}_sum": round(sum(values), 1) for role, values in found.items() if len(values) > 1}
    return seen | {"object_store": round(plasma_mib(), 1)}


def plasma_mib() -> float:
    """MiB of shared memory that Ray's object stores have touched."""
    files = Path("/dev/shm").glob("plasma*") if Path("/dev/shm").is_dir() else ()
    return sum(path.stat().st_blocks * 512 for path in files if path.exists()) / MIB


def summary(paths: Paths, samples: list[dict[str, float]], started: float) -> dict[str, Any]:
    """Users, seconds by stage, and for each role the peak memory in thirds of the training time."""
    events = [e for e in read_events(paths) if e["kind"] in ("pack", "late") and e["at"] > started]
    training = [s for s in samples if events and events[0]["at"] <= started + s["at"] <= events[-1]["at"]]
    thirds = [training[len(training) * n // 3 : len(training) * (n + 1) // 3] for n in range(3)]
    roles = sorted({role for s in training for role in s} - {"at"})
    markers = {path.stem: json.loads(path.read_text()) for path in Path(paths.root, "stages").glob("*.json")}
    return {
        "sharers": stats(Pool.open(paths.pool)).sharers,
        "own": stats(Pool.open(paths.own)).sharers,
        "stage_seconds": {name: marker["info"].get("seconds") for name, marker in markers.items()},
        "peak_mib_by_thirds": {
            role: [max((s.get(role, 0.0) for s in third), default=0.0) for third in thirds] for role in roles
        },
    }


def thinned(samples: list[dict[str, float]], most: int) -> list[dict[str, float]]:
    """At most so many, evenly."""
    step = max(1, -(-len(samples) // most))
    return samples[::step]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. ray.workers=4")
    parser.add_argument("--experiment", default=str(ROOT / "runs" / "scale_5000"))
    parser.add_argument(
        "--head", default="", metavar="ADDRESS", help="submit there, e.g. http://127.0.0.1:8265"
    )
    parser.add_argument(
        "--every", type=float, default=5.0, help="seconds between two looks (default: %(default)s)"
    )
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "scale.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
