"""Factors and whole sharers out of one pieces table, with or without a cache.

k pieces, r rank, d_in, d_out sizes of the projections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perpcs.records import Piece, PoolSpec
from storage.cache import PieceCache, PieceKey
from storage.pieces import PieceRows
from storage.rows import check_sums, held_arrays, piece_shapes, unpack

Pair = tuple[np.ndarray, np.ndarray]
"""Factors a [.., r, d_in] and b [.., d_out, r]."""


def fetch_factors(
    rows: PieceRows,
    wanted: Mapping[str, np.ndarray],
    spec: PoolSpec,
    *,
    cache: PieceCache | None = None,
    check: bool = False,
) -> dict[str, Pair]:
    """{projection: ordinals [k]} -> {projection: those sharers' factors, stacked, float32} in one scattered
    read.

    `check` compares what is read with its checksum, for which the keys must be read as well.
    """
    layers = np.concatenate([np.full(len(o), rows.layer(name)) for name, o in wanted.items()])
    ordinals = np.concatenate(list(wanted.values()))
    ends = np.cumsum([len(o) for o in wanted.values()])
    if cache is None:
        a, b = _read_factors(rows, (layers, ordinals), spec, check=check)
        parts = zip(np.split(a, ends[:-1]), np.split(b, ends[:-1]), strict=True)
        return dict(zip(wanted, parts, strict=True))
    shapes = piece_shapes(spec, rows.group)
    pieces = _through_cache(cache, rows, (layers, ordinals), spec, check=check)
    starts = [0, *ends[:-1]]
    return {
        name: _stack(pieces[start:end], shapes) for name, start, end in zip(wanted, starts, ends, strict=True)
    }


def read_pieces(rows: PieceRows, ordinals: np.ndarray, spec: PoolSpec) -> list[dict[str, Piece]]:
    """Every piece of one table for whole sharers: {projection: piece} for each of `ordinals` [k]."""
    layers = len(rows.group.layers)
    table, place = rows.take(
        np.tile(np.arange(layers), len(ordinals)), np.repeat(ordinals, layers), [*held_arrays(spec), "norm"]
    )
    arrays = {name: v[place].astype(np.float32) for name, v in unpack(table, rows.group, spec).items()}
    norms = table["norm"].to_numpy()[place].tolist()
    nothing = np.zeros((len(place), 0), np.float32)

    def piece(i: int) -> Piece:
        gate, key = (arrays.get(name, nothing)[i] for name in ("gate", "gradient_key"))
        return Piece(a=arrays["a"][i], b=arrays["b"][i], gate=gate, gradient_key=key, norm=norms[i])

    return [
        {name: piece(n * layers + layer) for layer, name in enumerate(rows.group.names)}
        for n in range(len(ordinals))
    ]


def _read_factors(rows: PieceRows, pairs: Pair, spec: PoolSpec, *, check: bool) -> Pair:
    """Factors of k pairs (layer, ordinal), repeats allowed: a [k, r, d_in], b [k, d_out, r], float32."""
    shapes, k = piece_shapes(spec, rows.group), len(pairs[0])
    if k and not check:
        a, b = (np.empty((k, *shapes[name]), np.float32) for name in ("a", "b"))
        if rows.read_direct(*pairs, {"a": a.reshape(k, -1), "b": b.reshape(k, -1)}):
            return a, b
    columns = [*held_arrays(spec), "norm", "checksum", "user_id", "layer"] if check else ["a", "b"]
    table, place = rows.take(*pairs, columns)
    if check:
        check_sums(table, rows.group, spec, rows.uri)
    arrays = unpack(table, rows.group, spec)
    a, b = (arrays[name][place].astype(np.float32, copy=False) for name in ("a", "b"))
    return a, b


def _through_cache(
    cache: PieceCache, rows: PieceRows, pairs: Pair, spec: PoolSpec, *, check: bool
) -> list[Pair]:
    """One (a, b) per pair (layer, ordinal), in float32; what the cache has not is read at once and put
    there.
    """
    layers, ordinals = pairs
    attempts = rows.attempts[ordinals]
    keys: list[PieceKey] = [
        (rows.group.table, attempt, layer)
        for attempt, layer in zip(attempts.tolist(), layers.tolist(), strict=True)
    ]
    held: dict[PieceKey, Pair] = {}
    missing: dict[PieceKey, int] = {}
    for i, key in enumerate(keys):
        if key not in held and key not in missing:
            found = cache.get(key)
            if found is None:
                missing[key] = i
            else:
                held[key] = found
    at = np.array(list(missing.values()), np.int64)
    for key, a, b in zip(
        missing, *_read_factors(rows, (layers[at], ordinals[at]), spec, check=check), strict=True
    ):
        held[key] = (a, b)
        cache.put(key, a, b)
    return [held[key] for key in keys]


def _stack(pieces: Sequence[Pair], shapes: Mapping[str, tuple[int, ...]]) -> Pair:
    a, b = (np.empty((len(pieces), *shapes[name]), np.float32) for name in ("a", "b"))
    for i, (left, right) in enumerate(pieces):
        a[i], b[i] = left, right
    return a, b
