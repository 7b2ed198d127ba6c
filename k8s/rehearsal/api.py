"""The dashboard's HTTP interface, from outside the cluster, as the operator and `ray job submit` use it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from k8s.rehearsal.cluster import HEAD
from k8s.rehearsal.network import address


@dataclass(frozen=True)
class Api:
    """Requests with the cluster's token."""

    token: str
    base: str = f"http://{address(HEAD)}:8265"

    def call(self, path: str, body: Any = None, *, method: str = "", timeout: float = 20.0) -> Any:
        """The answer's JSON, or its text. Raises OSError (of it HTTPError) where there is none."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.base}{path}", data, method=method or ("POST" if data else "GET")
        )
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            text = answer.read().decode()
        try:
            return json.loads(text)
        except ValueError:
            return text

    def healthy(self) -> bool:
        """Whether the GCS answers, as KubeRay's probe asks."""
        try:
            return "success" in str(self.call("/api/gcs_healthz", timeout=5))
        except OSError:
            return False

    def refused(self) -> int:
        """HTTP status of a job submitted without the token."""
        try:
            Api("", self.base).call("/api/jobs/", {"entrypoint": "true"})
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def submit(self, name: str, entrypoint: str, limit: float = 600.0) -> None:
        """Start a job; tried again while the head's agent, which starts jobs, is not up. The name starts it once."""
        until = time.monotonic() + limit
        while True:
            try:
                self.call("/api/jobs/", {"entrypoint": entrypoint, "submission_id": name}, timeout=120.0)
                return
            except urllib.error.HTTPError as error:
                said = error.read().decode()[-300:]
                if "already exists" in said:
                    return
                if error.code < 500 or time.monotonic() > until:
                    raise RuntimeError(f"job {name}: HTTP {error.code}: {said}") from error
            except OSError:  # a head that has just come back drops connections
                if time.monotonic() > until:
                    raise
            time.sleep(1.0)

    def status(self, name: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; empty while nobody answers."""
        try:
            return str(self.call(f"/api/jobs/{name}")["status"])
        except OSError:
            return ""

    def logs(self, name: str) -> str:
        """What the job printed."""
        return str(self.call(f"/api/jobs/{name}/logs")["logs"])

    def workers(self) -> dict[str, str]:
        """Address -> ALIVE or DEAD of every node but the head; empty while nobody answers."""
        try:
            nodes = self.call("/nodes?view=summary")["data"]["summary"]
        except OSError:
            return {}
        states = {node["ip"]: node["raylet"].get("state", "DEAD") for node in nodes if "ip" in node}
        return {ip: state for ip, state in states.items() if ip != address(HEAD)}

    def alive(self) -> list[str]:
        """Addresses of the workers that are alive."""
        return sorted(ip for ip, state in self.workers().items() if state == "ALIVE")
