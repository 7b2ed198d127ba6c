"""Kinds of FAISS index: when each is used, how it is built and how it is searched.

n vectors of size d. All rank by inner product; flat is exact, the others trade recall for time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

import numpy as np

from perpcs.errors import StoreError

Kind = Literal["auto", "flat", "ivf", "hnsw"]
Numbers = Literal["float32", "float16"]
_SPARE = 4
"""Candidates beyond k that are scored exactly: rounding decides who is a candidate, not who is chosen."""
_BLOCK, _SCORES = 8192, 1 << 23
"""Vectors, and scores at most, of one matrix product."""


@dataclass(frozen=True)
class IndexSettings:
    """What to build. The defaults give exact search up to `threshold` sharers and IVF above."""

    kind: Kind = "auto"
    threshold: int = 50_000
    """auto: the most sharers that are searched exhaustively."""
    lists: int = 0
    """ivf: clusters; 0 means 4 * sqrt(n)."""
    probes: int = 0
    """ivf: clusters visited per query; 0 means an eighth of them."""
    links: int = 32
    """hnsw: neighbours per vector."""
    effort: int = 128
    """hnsw: candidates kept while searching, and while building."""
    numbers: Numbers = "float32"
    """flat, ivf: how vectors are held. float16 halves the bytes and the time of single queries, and rounds scores
    in the fourth digit."""

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "flat", "ivf", "hnsw"):
            raise StoreError(f"index kind {self.kind!r}: use auto, flat, ivf or hnsw")
        if self.numbers not in ("float32", "float16") or (self.kind == "hnsw" and self.numbers != "float32"):
            raise StoreError(f"index numbers {self.numbers!r}: use float32, or float16 with flat or ivf")
        if min(self.threshold, self.lists, self.probes) < 0 or min(self.links, self.effort) < 2:
            raise StoreError(
                f"index settings {self}: sizes must not be negative, links and effort at least 2"
            )

    def resolve(self, n: int) -> IndexSettings:
        """The same with every 0 and auto replaced by what it means for `n` sharers."""
        kind = ("flat" if n <= self.threshold else "ivf") if self.kind == "auto" else self.kind
        lists = min(self.lists or max(int(4 * math.sqrt(n)), 1), max(n, 1))
        return replace(self, kind=kind, lists=lists, probes=min(self.probes or max(lists // 8, 1), lists))

    @property
    def digest(self) -> str:
        """8 hex digits of all fields."""
        return hashlib.blake2b(repr(astuple(self)).encode(), digest_size=4).hexdigest()


def new_index(settings: IndexSettings, d: int, sample: np.ndarray) -> Any:
    """An empty index of resolved `settings`; `sample` [s, d] trains the clusters of an ivf."""
    faiss = _faiss()
    half, by_product = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    if settings.kind == "flat":
        small = settings.numbers == "float16"
        return faiss.IndexScalarQuantizer(d, half, by_product) if small else faiss.IndexFlatIP(d)
    if settings.kind == "hnsw":
        index = faiss.IndexHNSWFlat(d, settings.links, by_product)
        index.hnsw.efConstruction = settings.effort
        return index
    quantiser, lists = faiss.IndexFlatIP(d), min(settings.lists, max(len(sample), 1))
    if settings.numbers == "float16":
        index = faiss.IndexIVFScalarQuantizer(quantiser, d, lists, half, by_product, False)
    else:
        index = faiss.IndexIVFFlat(quantiser, d, lists, by_product)
    index.cp.seed, index.cp.min_points_per_centroid = 1, 1
    index.train(sample)
    return index


def training_rows(settings: IndexSettings, n: int) -> np.ndarray:
    """Which vectors train an index: none, or for an ivf up to 64 per cluster, evenly spread."""
    if settings.kind != "ivf":
        return np.empty(0, np.int64)
    return np.unique(np.linspace(0, n - 1, min(n, 64 * settings.lists)).astype(np.int64))


def add_all(index: Any, batches: Iterable[np.ndarray]) -> Any:
    """Add vectors slice by slice."""
    for batch in batches:
        index.add(np.ascontiguousarray(batch, np.float32))
    return index


def search_index(
    index: Any, settings: IndexSettings, queries: np.ndarray, k: int, *, usable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of `usable` [n] bool per query [U, d]: scores [U, k] and positions [U, k], -1 where there
    are none.

    Exact scores are computed anew from the vectors found: FAISS rounds them otherwise for a query alone
    than in a batch, and who is asked together with whom must not matter.
    """
    exact = settings.kind == "flat"
    if exact and settings.numbers == "float32" and len(queries) > 1:
        scores, places = _multiply(index, queries, k + _SPARE, usable)
    else:
        scores, places = _search_selected(index, settings, queries, k + _SPARE * exact, usable)
    if exact:
        scores = _exact_scores(index, queries, places)
    scores[places < 0] = -np.inf
    order = np.lexsort((places, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)


def _multiply(index: Any, queries: np.ndarray, k: int, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Several queries over a flat index by matrix products, which read each vector once for all of them.

    FAISS does so only where there is no selector: 32 queries took it eight times as long with one.
    """
    n = index.ntotal
    stored = _faiss().rev_swig_ptr(index.get_xb(), n * index.d).reshape(n, index.d)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    places = np.full((len(queries), k), -1, np.int64)
    rows = min(_BLOCK, max(_SCORES // len(queries), 1))
    for start in range(0, n, rows):
        block = queries @ stored[start : start + rows].T
        block[:, ~usable[start : start + rows]] = -np.inf
        all_scores = np.concatenate([scores, block], axis=1)
        best = np.argpartition(-all_scores, k - 1, axis=1)[:, :k]
        scores = np.take_along_axis(all_scores, best, 1)
        older = np.take_along_axis(places, np.minimum(best, k - 1), 1)
        places = np.where(best < k, older, best - k + start)
    return scores, np.where(np.isneginf(scores), -1, places)


def _search_selected(
    index: Any, settings: IndexSettings, queries: np.ndarray, k: int, usable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """With a selector even where everybody is usable: for one query over 10,000 sharers FAISS 1.15 takes
    four times as long without."""
    faiss = _faiss()
    classes = {"ivf": faiss.SearchParametersIVF, "hnsw": faiss.SearchParametersHNSW}
    params = classes.get(settings.kind, faiss.SearchParameters)()
    if settings.kind == "ivf":
        params.nprobe = settings.probes
    elif settings.kind == "hnsw":
        params.efSearch = max(settings.effort, k)
    bits = np.packbits(usable, bitorder="little")
    params.sel = selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    scores, places = index.search(queries, k, params=params)
    del selector, bits  # faiss keeps only pointers, so both have to live until here
    return scores, places


def all_vectors(index: Any) -> np.ndarray | None:
    """[n, d] the vectors of a flat index, as they lie in its memory; None for another kind."""
    faiss = _faiss()
    if not isinstance(index, faiss.IndexFlat):
        return None
    return np.asarray(faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)).reshape(
        index.ntotal, index.d
    )


def _faiss() -> Any:
    """faiss, untyped: its type stubs lack names that it has."""
    import faiss

    return faiss


def _exact_scores(index: Any, queries: np.ndarray, places: np.ndarray) -> np.ndarray:
    found = index.reconstruct_batch(np.maximum(places, 0).reshape(-1)).reshape(*places.shape, -1)
    return np.einsum("ukd,ud->uk", found, queries, dtype=np.float64).astype(np.float32)
