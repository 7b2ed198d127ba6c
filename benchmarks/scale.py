"""Thousands of users through the whole flow, and the memory of every process of it over time.

Runs `python -m jobs.pipeline configs/scale_5000.yaml`, with --submit as a job submitted to a cluster that it starts for it
on this machine; looks every few seconds at what driver, coordinator, workers and Ray hold, and writes
benchmarks/results/scale.json. Flat means: the last third of the training stages needs no more than the second.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform as machine_platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.head import RAY, head_node, submission
from jobs.events import read_events
from storage.describe import stats
from storage.files import is_remote
from storage.layout import Paths
from storage.pool import Pool

ROOT = Path(__file__).resolve().parents[1]
ROLES = {
    "ray::_CoordinatorActor": "coordinator",
    "ray::_Worker": "workers",
    "ray::RayTrainWorker": "workers",
    "ray::narrate": "tasks",
    "raylet/raylet": "raylet",
    "gcs_server": "gcs",
    "-m jobs.pipeline": "driver",
}
"""By a part of the command line; the first that fits."""
MIB = 1 << 20


def main() -> int:
    arguments = _arguments()
    overrides = [f"experiment={arguments.experiment}", *arguments.overrides]
    program = ["-m", "jobs.pipeline", "configs/scale_5000.yaml", *overrides]
    started, watch = time.time(), Watch()
    with _command(program, submit=arguments.submit) as (command, env):
        run = subprocess.Popen(command, cwd=ROOT, env=env)
        while run.poll() is None:
            watch.look(time.time() - started)
            time.sleep(arguments.every)
    report = {
        "bench": "scale",
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {machine_platform.machine()}",
        "command": " ".join(["ray job submit --" if arguments.submit else "", "python", *program])
        .replace(f"{ROOT}/", "")
        .strip(),
        "status": run.returncode,
        "seconds": round(time.time() - started, 1),
        "cpu_seconds": watch.cpu_seconds(),
        "mean_load": round(sum(s["load"] for s in watch.samples) / max(1, len(watch.samples)), 1),
        **(summary(Paths.of(arguments.experiment), watch.samples, started) if run.returncode == 0 else {}),
        "samples": thinned(watch.samples, 200),
    }
    Path(arguments.out).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "samples"}, indent=1))
    return run.returncode


@contextmanager
def _command(program: list[str], *, submit: bool) -> Iterator[tuple[list[str], Mapping[str, str]]]:
    """The command line that runs the program, and its environment; for a job, with a cluster to submit it to."""
    if not submit:
        yield [sys.executable, *program], os.environ
        return
    folder = Path(tempfile.mkdtemp(prefix="pc-"))
    try:
        with head_node(folder, cpus=max(4, os.cpu_count() or 1)) as head:
            yield [RAY, *submission(*program)], head.env
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Watch:
    """What the processes below this one hold and have used, look by look."""

    samples: list[dict[str, float]] = field(default_factory=list)
    _cpu: dict[tuple[int, float], tuple[str, float]] = field(default_factory=dict)

    def look(self, at: float) -> None:
        """MiB of private memory by role (of several processes: the largest and the sum), and of Ray's object store in
        use; the machine's load."""
        found: dict[str, list[float]] = defaultdict(list)
        plasma = 0.0
        for process in psutil.Process().children(recursive=True):
            try:
                line, memory = " ".join(process.cmdline()), process.memory_info()
                role = next((role for part, role in ROLES.items() if part in line), "other")
                used = sum(process.cpu_times()[:2])
                plasma += plasma_mib(process.pid) if role == "raylet" else 0.0
                self._cpu[process.pid, process.create_time()] = role, used
            except psutil.Error:  # ended meanwhile
                continue
            found[role].append((memory.rss - getattr(memory, "shared", 0)) / MIB)
        seen = {role: round(max(values), 1) for role, values in found.items()}
        seen |= {f"{role}_sum": round(sum(values), 1) for role, values in found.items() if len(values) > 1}
        load = round(os.getloadavg()[0], 1)
        self.samples.append({"at": round(at, 1), **seen, "object_store": round(plasma, 1), "load": load})

    def cpu_seconds(self) -> dict[str, float]:
        """By role, as far as was seen."""
        found: dict[str, float] = defaultdict(float)
        for role, used in self._cpu.values():
            found[role] += used
        return {role: round(used, 1) for role, used in sorted(found.items())}


def plasma_mib(raylet: int) -> float:
    """MiB that a raylet's object store takes; its file has no name any more, but is still open."""
    held = 0
    with suppress(OSError):  # the raylet ended meanwhile, or there is no /proc
        for file in Path(f"/proc/{raylet}/fd").iterdir():
            with suppress(OSError):
                if "plasma" in str(file.readlink()):
                    held = max(held, file.stat().st_blocks * 512)
    return held / MIB


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
        "--submit", action="store_true", help="start a cluster and submit the run to it as a job"
    )
    parser.add_argument(
        "--every", type=float, default=5.0, help="seconds between two looks (default: %(default)s)"
    )
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "scale.json"))
    arguments = parser.parse_args()
    if not is_remote(arguments.experiment):  # a submitted job runs in a folder of its own
        arguments.experiment = str(Path(arguments.experiment).resolve())
    return arguments


if __name__ == "__main__":
    sys.exit(main())
