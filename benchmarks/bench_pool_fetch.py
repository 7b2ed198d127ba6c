"""384 scattered pieces of a 7B shape (128 projections, 3 each, rank 8): Lance against one safetensors file per sharer
and against the paper's way, which loads every sharer for every target.

Cold: the store's files are dropped from the page cache first. Warm: they are in it. Cached: the pool's own LRU holds the
pieces. `pool` is how the pool reads local files (storage/direct.py), `lance_take` is Lance's own scattered read, one call
per table at the same time, which is what the pool uses on object stores. The paper's way is measured per sharer and
stated for 1,000.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from pool_world import bench_arguments, chill, median, report, sharer, spec_of, timed
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from perpcs.records import PoolSpec, SharerAdapter
from storage.cache import PieceCache
from storage.pool import Pool
from storage.view import PoolView


def main() -> None:
    arguments = bench_arguments(__doc__)
    layers, sharers = (32, 64) if arguments.full else (4, 8)
    result = {"layers": layers, "projections": 4 * layers, "hidden": 4096, "rank": 8, "sharers": sharers}
    for dtype in ("float32", "float16"):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            result[dtype] = measure(Path(folder), spec_of(layers=layers), sharers, dtype)
    report("pool_fetch", result, full=arguments.full)


def measure(folder: Path, spec: PoolSpec, sharers: int, dtype: str) -> dict[str, float]:
    """Medians in milliseconds."""
    rng = np.random.default_rng(0)
    pool = Pool.create(str(folder / "pool"), spec=spec, dtype=dtype)
    (folder / "files").mkdir()
    for i in range(sharers):
        adapter = sharer(f"u{i:04d}", spec, rng)
        pool.commit([adapter])
        save_file(tensors(adapter, dtype), folder / "files" / f"{adapter.user_id}.safetensors")
    view, files = pool.view(), sorted((folder / "files").iterdir())
    view.fetch_many(wanted(view, rng))  # opens the tables and reads the row map once
    found = {}
    by_lance = pool.view()
    for rows in by_lance._tables.values():
        rows.read_direct = lambda *_: False
    by_lance.fetch_many(wanted(view, rng))
    for name, run in {
        "pool": lambda: view.fetch_many(wanted(view, rng)),
        "lance_take": lambda: by_lance.fetch_many(wanted(view, rng)),
        "files": lambda: from_files(files, wanted(view, rng)),
    }.items():
        cold = []
        for _ in range(3):
            chill(folder)
            cold += timed(run, repeats=1)
        found |= {f"{name}_cold_ms": median(cold), f"{name}_warm_ms": median(timed(run, repeats=11)[2:])}
    return found | cached(pool, rng) | papers_way(files)


def cached(pool: Pool, rng: np.random.Generator) -> dict[str, float]:
    """Reads that the pool's own cache answers."""
    view = pool.view(cache=PieceCache(8 << 30))
    choices = [wanted(view, rng) for _ in range(5)]
    for choice in choices:
        view.fetch_many(choice)
    return {
        "pool_cached_ms": median(
            [t for c in choices for t in timed(lambda c=c: view.fetch_many(c), repeats=2)]
        )
    }


def papers_way(files: list[Path]) -> dict[str, float]:
    """Loading whole adapters, one after the other, as the released code does for every target."""

    def load_all() -> None:
        for path in files:
            for array in load_file(path).values():
                array.astype(np.float32, copy=False)

    seconds = median(timed(load_all, repeats=2)[1:]) / 1e3
    return {"paper_s_per_1000_sharers_warm": round(seconds / len(files) * 1000, 2)}


def wanted(view: PoolView, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Three sharers per projection, at random."""
    return {p.name: rng.choice(len(view), 3, replace=False) for p in view.spec.projections}


def tensors(adapter: SharerAdapter, dtype: str) -> dict[str, np.ndarray]:
    """An adapter as a file holds it."""
    pieces = adapter.pieces.items()
    return {
        f"{name}.{part}": getattr(piece, part).astype(dtype) for name, piece in pieces for part in ("a", "b")
    }


def from_files(files: list[Path], choice: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same pieces out of one file per sharer, each file opened once."""
    by_file: dict[int, list[tuple[str, int]]] = {}
    for name, ordinals in choice.items():
        for place, ordinal in enumerate(ordinals.tolist()):
            by_file.setdefault(ordinal, []).append((name, place))
    found: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    for ordinal, pieces in by_file.items():
        with safe_open(files[ordinal], framework="numpy") as source:
            for name, place in pieces:
                a, b = (source.get_tensor(f"{name}.{part}") for part in ("a", "b"))
                found[name, place] = (a.astype(np.float32, copy=False), b.astype(np.float32, copy=False))
    return {
        name: tuple(np.stack([found[name, place][part] for place in range(3)]) for part in (0, 1))
        for name in choice
    }


if __name__ == "__main__":
    main()
