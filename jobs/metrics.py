"""Ray metrics of the training fleet, which a cluster's metrics port gives to Prometheus (docs/fleet.md lists them).

All of them are recorded in the coordinator, which hears of everything; a restarted one counts from zero, as Prometheus
expects of a counter.
"""

from __future__ import annotations

from jobs.fleet_types import FleetEvent

SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]

COUNTERS = {
    "perpcs_jobs_users": "users trained and committed",
    "perpcs_jobs_failed_users": "users that failed for good",
    "perpcs_jobs_retried_users": "users put back to be tried again",
    "perpcs_jobs_tokens": "tokens trained, without padding",
    "perpcs_jobs_lost_workers": "workers that died or fell silent with a pack in work",
    "perpcs_jobs_ill": "failures of the surroundings: a busy store, a full disk, a worker that could not start",
}
"""Prometheus adds _total to their names."""
GAUGES = {
    "perpcs_jobs_users_left": "users neither committed nor failed",
    "perpcs_jobs_pack_users": "users in the newest pack",
    "perpcs_jobs_worker_memory_bytes": "most main memory a worker has had",
}
HISTOGRAMS = {
    "perpcs_jobs_pack_seconds": "seconds of a pack, commit included",
    "perpcs_jobs_commit_seconds": "seconds of a pack's commit",
}


class FleetMetrics:
    """Records events; needs a Ray worker process. stage: the tag `stage` of every metric."""

    def __init__(self, stage: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        worker = "perpcs_jobs_worker_memory_bytes"
        self._worker = Gauge(worker, GAUGES[worker], tag_keys=("stage", "worker"))
        tags = ("stage",)
        self._counters = {name: Counter(name, text, tag_keys=tags) for name, text in COUNTERS.items()}
        self._gauges = {
            name: Gauge(name, text, tag_keys=tags) for name, text in GAUGES.items() if name != worker
        }
        self._histograms = {
            name: Histogram(name, text, boundaries=SECONDS, tag_keys=tags)
            for name, text in HISTOGRAMS.items()
        }
        self._tags = {"stage": stage}

    def record(self, event: FleetEvent) -> None:
        """Count one event."""
        for name, amount in amounts(event).items():
            if amount:
                self._counters[f"perpcs_jobs_{name}"].inc(amount, tags=self._tags)
        left = event.total - event.done - event.failed
        self._gauges["perpcs_jobs_users_left"].set(left, tags=self._tags)
        if event.kind in ("pack", "late"):
            self._gauges["perpcs_jobs_pack_users"].set(len(event.users), tags=self._tags)
            self._worker.set(event.memory, tags=self._tags | {"worker": event.worker})
            self._histograms["perpcs_jobs_pack_seconds"].observe(event.seconds, tags=self._tags)
            self._histograms["perpcs_jobs_commit_seconds"].observe(event.commit_seconds, tags=self._tags)


def amounts(event: FleetEvent) -> dict[str, int]:
    """What an event adds to each counter."""
    users, kind = len(event.users), event.kind
    return {
        "users": users if kind in ("pack", "late") else 0,
        "failed_users": users if kind == "failed" else 0,
        "retried_users": users if kind == "retry" else 0,
        "tokens": event.tokens,
        "lost_workers": int(kind == "lost"),
        "ill": int(kind == "ill"),
    }
