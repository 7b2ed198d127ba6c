"""Parts of a pool without copying it: who shares what, drawn from hashes, so the same everywhere and nested.

n sharers, P projections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def sharing_mask(ids: Sequence[str], projections: Sequence[str], *, ratio: float, seed: int) -> np.ndarray:
    """[n, P] bool: the pieces that are shared at `ratio` (the papers' rho).

    A fixed draw in [0, 1) per (seed, sharer, projection), compared with the ratio: what is shared at .3 is
    shared at .5, whoever else is in the pool.

    Raises:
        ValueError: the ratio is not between 0 and 1.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"sharing ratio {ratio}: must be between 0 and 1")
    people = np.array([_hash(f"{seed}/sharer/{user_id}") for user_id in ids], np.uint64)
    layers = np.array([_hash(f"{seed}/projection/{name}") for name in projections], np.uint64)
    return _uniform(people[:, None], layers[None, :]) < ratio


def sharer_subset(ids: Sequence[str], *, count: int, seed: int) -> np.ndarray:
    """[n] bool with `count` sharers (all, where there are fewer), nested in `count`."""
    draws = [_hash(f"{seed}/subset/{user_id}") for user_id in ids]
    order = sorted(range(len(ids)), key=lambda i: (draws[i], ids[i]))
    chosen = np.zeros(len(ids), bool)
    chosen[order[: max(count, 0)]] = True
    return chosen


def id_mask(ids: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """[n] bool: the sharers among `wanted`."""
    names = set(wanted)
    return np.array([user_id in names for user_id in ids], bool)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _uniform(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two 64-bit hashes -> one draw in [0, 1) by the splitmix64 finaliser, so that n * P draws need n + P
    hashes.
    """
    with np.errstate(over="ignore"):
        x = left + right * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def shared_mask(
    ids: Sequence[str], live: np.ndarray, names: Sequence[str], *, sharers: int, ratio: float, seed: int
) -> np.ndarray | None:
    """[n, P] bool: what `assembly.sharers` and `assembly.sharing_ratio` leave of a pool; None: all of it.

    What is left at fewer is left at more. live [n] bool: who is in the pool.
    """
    if not sharers and ratio == 1:
        return None
    there = np.flatnonzero(live)
    members = [ids[int(i)] for i in there]
    mask = sharing_mask(members, names, ratio=ratio, seed=seed)
    if sharers:
        mask &= sharer_subset(members, count=sharers, seed=seed)[:, None]
    shared = np.zeros((len(ids), len(names)), bool)
    shared[there] = mask
    return shared
