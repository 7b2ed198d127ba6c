"""Search for users over all projections of a 32-layer model with q, k, v, o: 128 searches with d = 4,096, top 3.

Keys are random (the worst case for an approximate index) or clustered (8 sharers to a cluster, as users of one
archetype are). For each size: FAISS as the pool uses it, flat and approximate, in single and half precision, torch by
brute force, and Lance's own vector index. A few indexes are built and visited in turn: together they are larger than
the processor's cache, so that costs as much as 128 of them. As in `PoolIndex.search_many`, several projections are
searched at the same time, each by one thread; torch has as many threads for its one product.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import faiss
import lance
import numpy as np
import pyarrow as pa
import torch
from pool_world import bench_arguments, median, report, timed

from storage.index_kinds import IndexSettings, add_all, new_index, search_index, training_rows
from storage.tables import vectors

D, SEARCHES, K, BATCH = 4096, 128, 3, 32
MEMORY = 2.2 * 2**30
"""Bytes of keys held at once; the raw keys and the index of one size are there together."""


def main() -> None:
    arguments = bench_arguments(__doc__)
    sizes = (1_000, 10_000, 100_000) if arguments.full else (1_000,)
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(1)
    result: dict = {"d": D, "searches": SEARCHES, "k": K, "threads": threads, "sizes": {}}
    for n in sizes:
        for kind in ("random", "clustered") if n < 100_000 else ("clustered",):
            result["sizes"][f"{n}_{kind}"] = measure(n, kind)
            print(n, kind, result["sizes"][f"{n}_{kind}"], flush=True)
    report("pool_search", result, full=arguments.full)


def measure(n: int, kind: str) -> dict:
    """Milliseconds for all 128 searches of one user, and per user in a batch of 32."""
    count = max(1, min(8, int(MEMORY / (8 * n * D))))
    stacks = [keys(n, kind, seed) for seed in range(count)]
    users = [questions(stack, seed) for seed, stack in enumerate(stacks)]
    usable = np.ones(n, bool)
    found: dict = {"distinct_indexes": count, "bytes_per_index": 4 * n * D}
    exact: list[np.ndarray] = []
    for settings in kinds(n):
        resolved = settings.resolve(n)
        start = time.perf_counter()
        built = count if resolved.kind == "flat" else min(count, 2)  # the others take long to build
        indexes = [build(resolved, stack) for stack in stacks[:built]]
        build_s = (time.perf_counter() - start) / built

        def search(i: int, u: int, indexes: list = indexes, resolved: IndexSettings = resolved) -> np.ndarray:
            which = i % len(indexes)
            return search_index(indexes[which], resolved, users[which][:u], K, usable=usable)[1]

        tops = [search(i, BATCH) for i in range(built)]
        exact = exact or tops
        found[name_of(resolved)] = {
            "build_s_per_index": round(build_s, 2),
            "recall_at_3": recall(exact, tops),
            **times(search, n),
        }
        del indexes, search  # before the next are built
    held = [torch.from_numpy(stack) for stack in stacks]

    def brute(i: int, u: int) -> torch.Tensor:
        return torch.topk(torch.from_numpy(users[i % count][:u]) @ held[i % count].T, K).indices

    found["torch"] = times(brute, n, threads=1)
    if n <= 10_000:
        found["lance_ivf_flat"] = lance_index(stacks[0], users[0], exact[0])
    return found


def times(search: Callable, n: int, *, threads: int | None = None) -> dict:
    """One user alone; 32 users at once, per user. Above 1,000 sharers fewer searches are timed and stated for 128."""
    count = max(8, SEARCHES * 1000 // n)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        alone = timed(lambda: list(pool.map(lambda i: search(i, 1), range(count))), repeats=3)
        some = range(max(count // 4, 4))
        batch = timed(lambda: list(pool.map(lambda i: search(i, BATCH), some)), repeats=1)
    return {
        "one_user_ms": round(median(alone) * SEARCHES / count, 1),
        "per_user_of_32_ms": round(median(batch) * SEARCHES / max(count // 4, 4) / BATCH, 1),
    }


def lance_index(stack: np.ndarray, queries: np.ndarray, exact: np.ndarray) -> dict:
    """Lance's IVF over one projection's keys, scaled to 128 of them; it answers one query at a time."""
    with tempfile.TemporaryDirectory() as folder:
        table = lance.write_dataset(pa.table({"v": vectors(stack)}), folder + "/keys.lance")
        start = time.perf_counter()
        lists = max(int(np.sqrt(len(stack))), 1)
        table = table.create_index("v", "IVF_FLAT", metric="dot", num_partitions=lists) or table
        build_s = time.perf_counter() - start
        table = lance.dataset(folder + "/keys.lance")

        def search(query: np.ndarray) -> np.ndarray:
            near = {"column": "v", "q": query, "k": K, "nprobes": max(lists // 8, 1)}
            return table.to_table(columns=["_distance"], nearest=near, with_row_id=True)["_rowid"].to_numpy()

        search(queries[0])
        taken = timed(lambda: search(queries[0]), repeats=10)
        tops = [np.stack([search(query) for query in queries])]
    return {
        "build_s_per_index": round(build_s, 2),
        "recall_at_3": recall([exact], tops),
        "one_user_ms": round(median(taken) * SEARCHES, 1),
    }


def kinds(n: int) -> list[IndexSettings]:
    """Flat first: the others are measured against it. A graph over 100,000 takes half an hour to build."""
    lists = max(int(np.sqrt(n)), 1)
    by_numbers = [
        IndexSettings(kind, lists=lists, probes=max(lists // 8, 1), numbers=numbers)
        for kind in ("flat", "ivf")
        for numbers in ("float32", "float16")
    ]
    return by_numbers + ([IndexSettings("hnsw")] if n <= 10_000 else [])


def name_of(settings: IndexSettings) -> str:
    name = f"ivf_{settings.lists}_probes_{settings.probes}" if settings.kind == "ivf" else settings.kind
    return name if settings.numbers == "float32" else f"{name}_half"


def build(settings: IndexSettings, stack: np.ndarray) -> faiss.Index:
    index = new_index(settings, D, stack[training_rows(settings, len(stack))[: 16 * settings.lists]])
    return add_all(index, (stack[i : i + 4096] for i in range(0, len(stack), 4096)))


def keys(n: int, kind: str, seed: int) -> np.ndarray:
    """[n, d] unit vectors."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((n, D), dtype=np.float32)
    if kind == "clustered":
        centres = rng.standard_normal((max(n // 8, 1), D), dtype=np.float32)
        for start in range(0, n, 8192):
            part = found[start : start + 8192]
            part += 1.5 * centres[np.arange(start, start + len(part)) % len(centres)]
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def questions(stack: np.ndarray, seed: int) -> np.ndarray:
    """[32, d] queries near some of the keys."""
    rng = np.random.default_rng(1000 + seed)
    near = stack[rng.integers(0, len(stack), BATCH)]
    return near + np.float32(0.5 / np.sqrt(D)) * rng.standard_normal((BATCH, D), dtype=np.float32)


def recall(exact: list[np.ndarray], found: list[np.ndarray]) -> float:
    hits = [
        len({*a} & {*b}) / K for e, f in zip(exact, found, strict=False) for a, b in zip(e, f, strict=True)
    ]
    return round(float(np.mean(hits)), 4)


if __name__ == "__main__":
    main()
