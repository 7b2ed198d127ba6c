"""A Ray head node of one's own on this machine, to submit jobs to: `with head_node(folder) as head: head.submit(…)`.

In processes of its own that end with it; `ray stop` would end other people's clusters too.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
START_S = 300.0
"""Longest that a head node may take to answer."""


@dataclass(frozen=True)
class Head:
    """A running head node with token authentication."""

    env: Mapping[str, str]
    """What a client needs."""
    dashboard: int
    agent: int
    metrics: int
    """Ports."""

    def ray(self, *arguments: str, timeout_s: float = 240.0, **env: str) -> subprocess.CompletedProcess[str]:
        """`ray ARGUMENTS` as a client, to its end."""
        return subprocess.run(
            [RAY, *arguments],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
        )

    def get(self, path: str) -> Any:
        """The JSON at a path of the dashboard."""
        head = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        address = urllib.request.Request(f"http://127.0.0.1:{self.dashboard}{path}", headers=head)
        return json.loads(urllib.request.urlopen(address, timeout=30).read())


def submission(*program: str, runtime_env: str = "configs/ray/job.yaml", wait: bool = True) -> list[str]:
    """Arguments of `ray` that submit this checkout's `python PROGRAM`, as docs/fleet.md says."""
    how = [] if wait else ["--no-wait"]
    return [
        "job", "submit", *how, "--working-dir", ".", "--runtime-env", runtime_env, "--", "python", *program
    ]  # fmt: skip


@contextmanager
def head_node(folder: Path, *, cpus: int = 4, **env: str) -> Iterator[Head]:
    """A head node for the length of the block, its files under `folder`, whose path must be short: sockets lie there.

    env: further variables of its environment. Raises RuntimeError when it does not start.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_")) and k != "PYTHONPATH"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Ray makes its workers 15 steps nicer than itself; beside other load they would stand still.
    started = kept | auth | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "PATH": path} | env
    dashboard, agent, metrics = (free_port() for _ in range(3))
    command = [
        RAY, "start", "--head", "--block", f"--num-cpus={cpus}", "--node-ip-address=127.0.0.1",
        f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={free_port()}", f"--metrics-export-port={metrics}",
        f"--ray-client-server-port={free_port()}", f"--temp-dir={folder / 'ray'}", "--object-store-memory=100000000",
    ]  # fmt: skip
    client = started | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            command, env=started, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
        try:
            _wait(head, folder, (dashboard, "/api/version"), (agent, "/api/local_raylet_healthz"))
            yield Head(client, dashboard, agent, metrics)
        finally:
            _end(head)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(head: subprocess.Popen[bytes], folder: Path, *places: tuple[int, str]) -> None:
    """Until every place answers; the agent, which takes jobs, is the last."""
    until = time.monotonic() + START_S
    while not all(_answers(port, path) for port, path in places):
        if head.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the head node does not answer: {(folder / 'head.log').read_text()[-2000:]}")
        time.sleep(0.2)


def _answers(port: int, path: str) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).close()
    except urllib.error.HTTPError as refused:
        return refused.code in (401, 403)  # it is there, and wants the token
    except OSError:
        return False
    return True


def _end(head: subprocess.Popen[bytes]) -> None:
    """All its processes, at once: `ray start` gives each of them seconds, one after the other."""
    family = []
    if head.poll() is None:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)
    head.wait()
