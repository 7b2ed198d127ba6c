"""The service in the rehearsed cluster: rolled to other settings, and its head lost, while clients stream."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from k8s.rehearsal.api import Api
from k8s.rehearsal.cluster import Cluster
from k8s.rehearsal.network import Clock

PORT = 8000
REPLICAS = 2
STREAMS = 2


@dataclass
class Client(threading.Thread):
    """Streams completions one after the other until it is told to stop, and counts what came."""

    url: str
    token: str
    model: str
    done: int = 0
    texts: int = 0
    errors: list[str] = field(default_factory=list)
    longest: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Until `stop` is set."""
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                self._stream()
                self.done += 1
            except (OSError, ValueError) as error:
                said = error.read().decode()[:200] if hasattr(error, "read") else ""
                self.errors.append(f"{error} {said}")
                time.sleep(0.5)
            self.longest = max(self.longest, time.monotonic() - began)

    def _stream(self) -> None:
        body = {
            "model": self.model,
            "prompt": "a film about",
            "max_tokens": 24,
            "stream": True,
            "temperature": 1.0,
        }
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=120) as answer:
            last = ""
            for line in answer:
                if line.startswith(b"data: "):
                    last = line.decode().strip()
                    self.texts += 1
        if last != "data: [DONE]":
            raise ValueError(f"the stream broke off after {last[:80]!r}")


def deploy(cluster: Cluster, clock: Clock, what: str, **settings: Any) -> None:
    """Send Serve's configuration, as KubeRay's operator does, and wait until it runs."""
    api = Api(cluster.token)
    args = {
        "experiment": str(cluster.folder / "experiment"), "auth.tokens": str(cluster.folder / "tokens.json"),
        "replicas.min": REPLICAS, "replicas.max": REPLICAS, "replicas.gpus": 1, "replicas.cpus": 1, "replicas.drain_s": 20,
        "replicas.ingress": 1, "replicas.ingress_cpus": 0.25, "engine.device": "cpu",
        "limits.requests_per_second": 1000, "limits.burst": 1000,
    }  # fmt: skip
    application = {
        "name": "perpcs",
        "import_path": "serve.app:build",
        "route_prefix": "/",
        "args": args | settings,
    }
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": PORT},
        "applications": [application],
    }
    api.call("/api/serve/applications/", config, method="PUT", timeout=120)
    time.sleep(2.0)  # until the controller has noticed
    clock.wait(what, lambda: _running(api), 900, every=0.5)


def _running(api: Api) -> bool:
    try:
        status = api.call("/api/serve/applications/")["applications"]["perpcs"]
    except (OSError, KeyError):
        return False
    if status["status"] == "DEPLOY_FAILED":
        raise AssertionError(status["message"])
    deployments = status["deployments"].values()
    return status["status"] == "RUNNING" and all(d["status"] == "HEALTHY" for d in deployments)


def _token(cluster: Cluster) -> str:
    command = [sys.executable, "-m", "serve.tokens", "new", str(cluster.folder / "tokens.json")]
    return subprocess.run(command, env=cluster.env, capture_output=True, text=True, check=True).stdout.strip()


def serve_roll(cluster: Cluster, clock: Clock) -> None:
    """The pipeline's experiment served by two replicas; rolled to other settings, then the head lost, under streams."""
    api, token = Api(cluster.token), _token(cluster)
    clock.wait("head answers", api.healthy)
    deploy(cluster, clock, "service up, from no worker")
    url = f"http://{api.alive()[0]}:{PORT}"
    assert _status(url, "/readyz") == 200 and _status(url, "/v1/models") == 401
    clients = [Client(url, token, "experiment") for _ in range(STREAMS)]
    for client in clients:
        client.start()
    clock.wait("answers stream", lambda: all(c.done > 1 or c.errors for c in clients))
    _seen(clock, clients, "before")
    deploy(cluster, clock, "rolled to other settings", **{"engine.slots": 32})
    _seen(clock, clients, "during the roll")
    cluster.head.kill()
    clock.note("head killed")
    time.sleep(10)
    _seen(clock, clients, "10 s without a head")
    clock.wait("head answers again", api.healthy)
    clock.wait("Serve says it runs", lambda: _running(api))
    _seen(clock, clients, "until it was back")
    for client in clients:
        client.stop.set()
    for client in clients:
        client.join(120)
    api.call("/api/serve/applications/", method="DELETE", timeout=120)
    assert not [error for client in clients for error in client.errors]


def _seen(clock: Clock, clients: list[Client], when: str) -> None:
    """Note what came since the last time."""
    errors = [error for client in clients for error in client.errors]
    clock.note(
        f"answers {when}",
        f"{sum(c.done for c in clients)} in all, {sum(c.texts for c in clients)} pieces of text",
    )
    clock.note(f"errors {when}", f"{len(errors)} {errors[-1] if errors else ''}".strip())
    clock.note(f"longest answer {when}", round(max(c.longest for c in clients), 1))
    for client in clients:
        client.longest = 0.0


def _status(url: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"{url}{path}", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
