"""A cluster rehearsed on one machine: `python -m k8s.rehearsal [SCENE…]`, all scenes by default.

Head, Redis and workers have network namespaces and addresses of their own; the autoscaler starts workers from zero;
GPUs are fake. Everything runs inside a network, process and mount namespace that ends with this program: no other
Ray on the machine is seen or touched. Needs root, `unshare`, `ip`, `nsenter` and redis-server.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

INSIDE = "PERPCS_REHEARSAL"
SCENES = ("first-worker", "head-lost", "pipeline", "serve-roll", "scaled-down")
SHORT = ("first-worker", "head-lost")


def obstacle() -> str:
    """Why it cannot run here, or nothing."""
    for tool in ("unshare", "ip", "nsenter", "redis-server"):
        if shutil.which(tool) is None:
            return f"no {tool} here"
    probe = "mount -t tmpfs t /run && mkdir /run/netns && ip link add b0 type bridge && ip netns add probe"
    tried = subprocess.run([*_isolated(), "sh", "-c", probe], capture_output=True, text=True)
    return f"namespaces are not permitted here: {tried.stderr.strip()[:200]}" if tried.returncode else ""


def _isolated() -> list[str]:
    return ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]


def rehearse(names: list[str], *, report: Path | None, keep: bool, experiment: Path | None = None) -> None:
    """Run scenes in turn, as process 1 of the namespaces. experiment: a finished one, for `serve-roll` by itself."""
    from k8s.rehearsal import scenes, serving
    from k8s.rehearsal.cluster import Cluster
    from k8s.rehearsal.network import Clock, make_bridge

    known: dict[str, Callable[[Cluster, Clock], None]] = {
        "first-worker": scenes.first_worker,
        "head-lost": scenes.head_lost,
        "pipeline": scenes.pipeline,
        "serve-roll": serving.serve_roll,
        "scaled-down": scenes.scaled_down,
    }
    make_bridge()
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="rehearsal-")))
    if keep:
        sys.stdout.write(f"logs: {cluster.folder}\n")
    if experiment is not None:
        shutil.copytree(experiment, cluster.folder / "experiment")
    notes = {}
    try:
        cluster.start()
        for name in names or known:
            sys.stdout.write(f"{name}: {' '.join((known[name].__doc__ or '').split())}\n")
            clock = Clock()
            known[name](cluster, clock)
            notes[name] = dict(clock.notes)
    except BaseException:
        for log in sorted(cluster.folder.glob("machine-*.log")):
            sys.stderr.write(f"== {log.name}\n{log.read_text()[-2000:]}\n")
        raise
    finally:
        cluster.stop()
        if not keep:
            shutil.rmtree(cluster.folder, ignore_errors=True)
    if report is not None:
        report.write_text(json.dumps(notes, indent=2) + "\n")


def main() -> int:
    """The command line: once outside, to make the namespaces, and once inside them."""
    parser = argparse.ArgumentParser(prog="python -m k8s.rehearsal", description=__doc__)
    parser.add_argument("scenes", metavar="SCENE", nargs="*", help=", ".join(SCENES))
    parser.add_argument("--report", type=Path, help="write what was seen there, as JSON")
    parser.add_argument(
        "--experiment", type=Path, help="a finished one, to rehearse serve-roll without pipeline"
    )
    parser.add_argument("--keep", action="store_true", help="leave logs and disks where they are")
    words = parser.parse_args()
    if os.environ.get(INSIDE):
        rehearse(words.scenes, report=words.report, keep=words.keep, experiment=words.experiment)
        return 0
    if reason := obstacle():
        sys.stderr.write(f"{reason}\n")
        return 2
    command = [*_isolated(), sys.executable, "-m", "k8s.rehearsal", *sys.argv[1:]]
    return subprocess.run(command, env=os.environ | {INSIDE: "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
