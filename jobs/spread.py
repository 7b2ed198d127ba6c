"""A stage's work over many users, spread over as many Ray tasks as there are workers.

Users are cut into slices whose size depends on the data and not on the number of workers, and a slice's result depends
on the slice alone. So the same comes out, bit for bit, with any number of workers.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from jobs.runtime import connect, run_remote, runs_here
from perpcs.config.schema import RayConfig

S = TypeVar("S")
T = TypeVar("T")


def slices(items: Sequence[S], weights: Sequence[float], *, most: float) -> list[Sequence[S]]:
    """Items, in order, in runs of nearly equal weight, about `most` each; at least one item in each."""
    parts: list[Sequence[S]] = []
    total, start, passed = sum(weights), 0, 0.0
    count = max(1, min(len(items), round(total / most)))
    for n, weight in enumerate(weights, start=1):
        passed += weight
        left = count - len(parts)
        # Cut where a share of the whole has passed, and never so late that an item would be missing for a slice.
        if left > 1 and (passed >= total * (len(parts) + 1) / count or len(items) - n < left):
            parts.append(items[start:n])
            start = n
    return [part for part in [*parts, items[start:]] if part]


def shares(parts: Sequence[S], workers: int) -> list[Sequence[S]]:
    """Neighbouring parts for each worker, nearly equally many."""
    count = max(1, min(workers, len(parts)))
    bounds = [len(parts) * n // count for n in range(count + 1)]
    return [parts[low:high] for low, high in pairwise(bounds)]


def spread(fn: Callable[..., list[T]], *args: Any, parts: Sequence[S], cfg: RayConfig) -> list[T]:
    """`fn(*args, some_parts)` in one Ray task per worker; the results for all parts, in order.

    fn returns one result for every part it is given, opens what it needs once, and may be started over (see `run_remote`).
    The first exception ends the call.
    """
    given = shares(parts, 1 if runs_here(cfg) else cfg.workers)
    if len(given) == 1:
        return run_remote(fn, *args, given[0], cfg=cfg)
    found: list[list[T]] = [[] for _ in given]
    ended: queue.SimpleQueue[tuple[int, list[T] | BaseException]] = queue.SimpleQueue()

    def one(n: int) -> None:
        try:
            ended.put((n, run_remote(fn, *args, given[n], cfg=cfg)))
        except BaseException as error:
            ended.put((n, error))

    with connect(cfg):
        for n in range(len(given)):
            # Threads, because each waits for its task; daemons, because on Ctrl-C nobody waits for them.
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(one, n), name=f"share-{n}", daemon=True).start()
        for _ in given:
            n, outcome = ended.get()
            if isinstance(outcome, BaseException):
                raise outcome
            found[n] = outcome
    return [result for share in found for result in share]
