"""What is rehearsed. Each scene notes what it saw and raises AssertionError or TimeoutError where it must not go on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from k8s.rehearsal.api import Api
from k8s.rehearsal.cluster import Cluster
from k8s.rehearsal.network import Clock, beside, cut, running
from storage.pool import Pool

MINI = """\
population:
  synthetic: {archetypes: 2, base_users: 12, candidates: 16, targets: 3, history: 12, queries: 4}
prompt: {max_length: 48}
base:
  tiny: {hidden: 32, layers: 2, vocab: 400, steps: 60, batch: 16, lr: 1e-2}
  adapt: {steps: 4, batch: 8, rank: 4}
lora: {rank: 4}
select: {count: 12, strategy: active}
pool:
  train: {steps: 200, batch: 4, pack: 1, lr: 1e-2}
  gate: {steps: 50, batch: 4, pack: 1}
  sketch: 8
own: {steps: 30, batch: 4, pack: 2, lr: 1e-2}
evaluate: {resamples: 100}
ray: {address: auto, workers: 2, gpus: 1, cpus: 1, threads: 1}
"""
"""A whole flow that trains twelve sharers one by one on two (fake) GPUs."""
SHARERS = 12
SHARING = "sharers"
"""What the event log calls their training."""
CALLS_S = 900.0
"""The longest that a client calls."""
AFTER_S = 3.0
"""How long it calls on when the new head is there."""


def first_worker(cluster: Cluster, clock: Clock) -> None:
    """One task that wants a GPU, on a cluster that has no worker at all."""
    api = Api(cluster.token)
    clock.wait("head answers", api.healthy)
    clock.note("a job without the token: HTTP status", api.refused())
    assert api.refused() in {401, 403}, "anybody can submit jobs"
    assert not api.alive()
    api.submit("first", f"{sys.executable} -c 'import ray; ray.init(); {_GPU_TASK}'")
    clock.wait("first worker alive", lambda: bool(api.alive()))
    clock.wait("its task done", lambda: api.status("first") in {"SUCCEEDED", "FAILED"})
    assert api.status("first") == "SUCCEEDED", api.logs("first")
    clock.note("ran on", api.logs("first").split()[-1])


_GPU_TASK = "print(ray.get(ray.remote(num_gpus=1)(ray.util.get_node_ip_address).remote()))"


def pipeline(cluster: Cluster, clock: Clock) -> None:
    """The whole flow as a Ray job; when the first sharers are in, one worker's cable is taken out."""
    api, folder = Api(cluster.token), cluster.folder / "experiment"
    (cluster.folder / "mini.yaml").write_text(MINI)
    clock.wait("head answers", api.healthy)
    api.submit(
        "pipeline", f"{sys.executable} -m jobs.pipeline {cluster.folder}/mini.yaml experiment={folder}"
    )
    clock.wait("two workers alive", lambda: len(api.alive()) >= 2 or _ended(api), 900)
    clock.wait("two sharers committed", lambda: len(_told(folder)) >= 2 or _ended(api), 900)
    victim = api.alive()[-1]
    cut(int(victim.rpartition(".")[2]))
    clock.note("cut off", f"{victim} after {len(_told(folder))} sharers")
    clock.wait("counted as dead", lambda: victim not in api.alive() or _ended(api), 300)
    clock.wait("a new worker beside the one that is left", lambda: len(api.alive()) >= 2 or _ended(api), 300)
    clock.wait("pipeline done", lambda: _ended(api), 1500, every=1.0)
    assert api.status("pipeline") == "SUCCEEDED", api.logs("pipeline")[-3000:]
    # The store is the truth: a worker that is cut off may still commit, and cannot say so.
    there, told = Pool.open(str(folder / "pool")).view().ids, _told(folder)
    clock.note("sharers in the pool", f"{len(there)}; reported {len(told)}")
    assert len(set(there)) == len(there) == SHARERS and len(set(told)) == len(told)
    cut(int(victim.rpartition(".")[2]), off=False)


def _ended(api: Api, name: str = "pipeline") -> bool:
    return api.status(name) in {"SUCCEEDED", "FAILED", "STOPPED"}


def _events(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of events.jsonl that report a finished pack."""
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [
        event for event in events if event.get("stage") == stage and event.get("kind") in {"pack", "late"}
    ]


def _told(folder: Path) -> list[str]:
    """Sharers whose training was reported."""
    return [user for event in _events(folder, SHARING) for user in event.get("users", ())]


def scaled_down(cluster: Cluster, clock: Clock) -> None:
    """Nothing to do: the workers go."""
    api = Api(cluster.token)
    clock.wait("no worker left", lambda: not api.alive(), 300)


def head_lost(cluster: Cluster, clock: Clock) -> None:
    """While a client calls an actor on a worker, the head dies with everything on it and comes back."""
    api, out = Api(cluster.token), cluster.folder / "calls.json"
    caller = _start_caller(cluster, clock, out)
    cluster.head.kill()
    clock.note("head killed")
    assert not api.healthy()
    clock.wait("head answers again", api.healthy)
    clock.wait("the worker is known again", lambda: bool(api.alive()))
    time.sleep(AFTER_S)
    out.with_suffix(".stop").touch()
    assert caller.wait(120) == 0
    seen = json.loads(out.read_text())
    for what, value in seen.items():
        clock.note(what, value)
    assert seen["errors"] == 0 and seen["count"] == seen["calls"] + 1, "calls were lost, or the actor was"


def _start_caller(cluster: Cluster, clock: Clock, out: Path) -> subprocess.Popen[bytes]:
    """The client, on a worker's machine; a worker is asked for by a job where there is none."""
    api = Api(cluster.token)
    if not api.alive():
        api.submit("again", f"{sys.executable} -c 'import ray; ray.init(); {_GPU_TASK}'")
        clock.wait("a worker for the client", lambda: bool(api.alive()))
    first = running(int(api.alive()[0].rpartition(".")[2]))[0]
    command = [sys.executable, "-m", "k8s.rehearsal.caller", str(out), str(CALLS_S)]
    caller = subprocess.Popen(beside(first, command), env=cluster.env)
    clock.wait("client calls", lambda: out.with_suffix(".ready").exists() or caller.poll() is not None)
    assert caller.poll() is None, "the client ended before it called"
    return caller
