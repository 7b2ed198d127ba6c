"""The selection rules: each turns target users' items into recipes over one version of a pool.

Shapes: U users, P projections, k picks, n sharers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from perpcs.assembly.autoregressive import Rule, assemble_forward
from perpcs.assembly.pieces import Pieces, shared_pieces, usable
from perpcs.assembly.select import merge_picks, round_weights, softmax_weights, top_sharers
from perpcs.keys.gradient import gradient_queries, make_sketches
from perpcs.lora.inject import BankedModel
from perpcs.population.prompts import Encoded
from perpcs.records import PoolSpec, Recipe, ordinal_dtype, quantise_weights
from perpcs.seeds import rng
from perpcs.train.pack import UserData

MARGIN = 16
"""Sharers beyond the top k whose scores are added up exactly as well: what a quick sum misplaces stays among them."""

Picks = tuple[np.ndarray, np.ndarray, float]
"""(ordinals [P, k], codes [P, k], weight scale) of one user."""


def passes(users: Sequence[UserData], *, items: int) -> Iterator[list[UserData]]:
    """Consecutive groups of users with at most `items` history items together, at least one user each."""
    group: list[UserData] = []
    for user in users:
        if group and sum(len(u.examples) for u in group) + len(user.examples) > items:
            yield group
            group = []
        group.append(user)
    if group:
        yield group


def gate_picks(
    model: BankedModel,
    users: Sequence[UserData],
    pieces: Pieces,
    rule: Rule,
    *,
    batch_items: int,
    items_per_pass: int,
) -> list[Picks]:
    """Auto-regressive gate-key selection. `batch_items` > 0 selects anew for every batch of that many items and averages
    the batches' adapters, as the papers' code does; 0 selects once from the whole history."""
    chunks = [UserData(u.user_id, part) for u in users for part in _batches(u.examples, batch_items)]
    chosen: dict[str, list[dict[str, tuple[np.ndarray, np.ndarray]]]] = {u.user_id: [] for u in users}
    for group in passes(chunks, items=items_per_pass):
        found = assemble_forward(model, [c.examples for c in group], pieces, rule).by_projection
        for i, chunk in enumerate(group):
            chosen[chunk.user_id].append({name: (o[i], c[i]) for name, (o, c) in found.items()})
    return [_union(chosen[u.user_id], pieces) for u in users]


def _batches(examples: tuple[Encoded, ...], size: int) -> list[tuple[Encoded, ...]]:
    return [examples[i : i + size] for i in range(0, len(examples), size)] if size else [examples]


def _union(batches: list[dict[str, tuple[np.ndarray, np.ndarray]]], pieces: Pieces) -> Picks:
    names = [p.name for p in pieces.spec.projections]
    if len(batches) == 1:
        return np.stack([batches[0][n][0] for n in names]), np.stack([batches[0][n][1] for n in names]), 1.0
    merged = [merge_picks([(b[n][0], b[n][1] / np.float32(127)) for b in batches]) for n in names]
    width = max(len(o) for o, _ in merged)
    ordinals, weights = np.zeros((len(names), width), np.int64), np.zeros((len(names), width), np.float32)
    for j, (o, w) in enumerate(merged):
        ordinals[j, : len(o)], weights[j, : len(w)] = o, w
    return ordinals, *quantise_weights(weights)


def gradient_picks(
    model: BankedModel,
    users: Sequence[UserData],
    pieces: Pieces,
    rule: Rule,
    *,
    whole_sharers: bool = False,
    items_per_pass: int = 256,
) -> list[Picks]:
    """Gradient-key selection: one forward and backward of the history at the frozen base, all projections at once.

    whole_sharers: sum the scores over projections and choose the same sharers everywhere ("global").
    """
    queries = history_queries(model, users, pieces.spec, items_per_pass=items_per_pass)
    return picks_of_queries(queries, pieces, rule, whole_sharers=whole_sharers)


def history_queries(
    model: BankedModel, users: Sequence[UserData], spec: PoolSpec, *, items_per_pass: int = 256
) -> dict[str, np.ndarray]:
    """By projection name [U, m * m]: the users' gradient queries, which no rule, pool or top-k has a part in."""
    sketches = make_sketches(spec.projections, spec.sketch, device=model.device)
    parts = [
        gradient_queries(model, [u.examples for u in group], sketches)
        for group in passes(users, items=items_per_pass)
    ]
    return {p.name: np.concatenate([part[p.name].cpu().numpy() for part in parts]) for p in spec.projections}


def picks_of_queries(
    queries: Mapping[str, np.ndarray], pieces: Pieces, rule: Rule, *, whole_sharers: bool
) -> list[Picks]:
    """The gradient-key rules from queries on."""
    return _global_picks(queries, pieces, rule) if whole_sharers else _local_picks(queries, pieces, rule)


def _local_picks(queries: Mapping[str, np.ndarray], pieces: Pieces, rule: Rule) -> list[Picks]:
    k = min(rule.top_k, len(usable(pieces)))
    found = [pieces.search("gradient", p.name, queries[p.name], k) for p in pieces.spec.projections]
    ordinals_UPk = np.stack([o for _, o in found], 1)
    weights_UPk = softmax_weights(
        np.stack([s for s, _ in found], 1), ordinals_UPk, temperature=rule.temperature
    )
    codes_UPk = round_weights(weights_UPk)
    return [(ordinals_UPk[u], codes_UPk[u], 1.0) for u in range(len(ordinals_UPk))]


def _global_picks(queries: Mapping[str, np.ndarray], pieces: Pieces, rule: Rule) -> list[Picks]:
    scores_Uk, chosen_Uk = best_sharers(queries, pieces, rule.top_k)
    there_UPk = shared_pieces(pieces).T[:, chosen_Uk].swapaxes(0, 1)
    ordinals_UPk = np.where(there_UPk, chosen_Uk[:, None], -1)
    codes_UPk = round_weights(softmax_weights(scores_Uk[:, None], ordinals_UPk, temperature=rule.temperature))
    return [(o, c, 1.0) for o, c in zip(ordinals_UPk, codes_UPk, strict=True)]


def best_sharers(queries: Mapping[str, np.ndarray], pieces: Pieces, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean scores [U, k], ordinals [U, k]) of the sharers whose gradient keys fit best over all projections; fewer
    where the pool has fewer."""
    projections = pieces.spec.projections
    k = min(k, len(usable(pieces)))
    near_Uc = _nearest_sharers(queries, pieces, min(k + MARGIN, len(usable(pieces))))
    total_Uc = sum(pieces.scores("gradient", p.name, queries[p.name], near_Uc) for p in projections)
    scores_Uk, place_Uk = top_sharers(np.asarray(total_Uc) / len(projections), k)
    return scores_Uk, np.take_along_axis(near_Uc, place_Uk, 1)


def _nearest_sharers(queries: Mapping[str, np.ndarray], pieces: Pieces, c: int) -> np.ndarray:
    """[U, c] ordinals, ascending, of the best by the sum over projections, leaving out those who withdrew."""
    total_Un = sum(pieces.scores("gradient", p.name, queries[p.name]) for p in pieces.spec.projections)
    _, ordinals_Uc = top_sharers(np.where(pieces.live, total_Un, -np.inf), c)
    return np.sort(ordinals_Uc, axis=1)


def retrieval_picks(user_keys_Ud: np.ndarray, pieces: Pieces) -> list[Picks]:
    """PEFT retrieval: the whole LoRA of the sharer whose history embedding is nearest (METHOD section 5)."""
    usable(pieces)
    scores_Un = np.where(pieces.live, user_keys_Ud @ pieces.history_keys().T, -np.inf)
    _, ordinals_U1 = top_sharers(scores_Un, 1)
    codes_nP = (127 * shared_pieces(pieces)).astype(np.int8)
    projections = len(pieces.spec.projections)
    return [(np.tile(o, (projections, 1)), codes_nP[o[0]][:, None], 1.0) for o in ordinals_U1]


def random_picks(users: Sequence[str], pieces: Pieces, *, top_k: int, seed: int) -> list[Picks]:
    """Control: k different pieces per projection drawn at random by (seed, user), equal weights."""
    k = min(top_k, len(usable(pieces)))
    from_these = [np.flatnonzero(column) for column in shared_pieces(pieces).T]
    picks = []
    for user_id in users:
        draw = rng(seed, "random_pieces", user_id)
        rows = [draw.choice(there, min(k, len(there)), replace=False) for there in from_these]
        ordinals = np.stack([np.pad(row, (0, k - len(row)), constant_values=-1) for row in rows])
        found = ordinals >= 0
        weights = found / np.maximum(found.sum(axis=1, keepdims=True), 1)
        picks.append((ordinals, round_weights(weights), 1.0))
    return picks


def uniform_picks(pieces: Pieces) -> Picks:
    """Control: every sharer everywhere with weight 1 / n; the same for all users."""
    ordinals = usable(pieces)
    there_Pn = shared_pieces(pieces)[ordinals].T
    weights_Pn = there_Pn / np.maximum(there_Pn.sum(axis=1, keepdims=True), 1)
    return np.tile(ordinals, (len(there_Pn), 1)), *quantise_weights(weights_Pn)


def make_recipe(user_id: str, method: str, picks: Picks, pieces: Pieces, *, merge: str) -> Recipe:
    """A recipe from picks, with ordinals in the smallest type that names every sharer of the pool."""
    ordinals, codes, scale = picks
    return Recipe(
        user_id=user_id,
        method=method,
        fingerprint=pieces.spec.fingerprint,
        pool_version=pieces.version,
        merge=merge,
        ordinals=np.maximum(ordinals, 0).astype(ordinal_dtype(len(pieces.ids))),
        codes=codes,
        weight_scale=scale,
    )
