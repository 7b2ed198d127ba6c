"""A client inside the cluster that calls a detached actor on and on: `python -m k8s.rehearsal.caller FILE SECONDS`,
until FILE with the suffix .stop is there, SECONDS at most.

Writes what it saw as JSON: calls, errors, the longest gap, and whether the actor kept its count.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray

EVERY_S = 0.05


@ray.remote(num_gpus=1, max_restarts=0)
class Counter:
    """Holds a number that is lost with its process."""

    def __init__(self) -> None:
        self._count = 0

    def add(self) -> int:
        """One more."""
        self._count += 1
        return self._count


def call(counter: Any, stop: Path, until: float) -> dict[str, Any]:
    """Calls until a file is there, or a time of time.monotonic()."""
    done, errors, longest, last, count = 0, 0, 0.0, time.monotonic(), 0
    while time.monotonic() < until and not stop.exists():
        try:
            count = ray.get(counter.add.remote(), timeout=60)
            done += 1
        except ray.exceptions.RayError:
            errors += 1
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        time.sleep(EVERY_S)
    return {"calls": done, "errors": errors, "longest gap": round(longest, 2), "count": count}


def main(out: Path, seconds: float) -> None:
    """Make the actor, say that it is ready, call."""
    ray.init(address="auto", namespace="rehearsal", log_to_driver=False, logging_level="ERROR")
    counter = Counter.options(name="counter", lifetime="detached").remote()  # type: ignore[attr-defined]
    ray.get(counter.add.remote())
    out.with_suffix(".ready").touch()
    out.write_text(json.dumps(call(counter, out.with_suffix(".stop"), time.monotonic() + seconds)))
    ray.kill(counter)  # it would hold its worker for ever


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
