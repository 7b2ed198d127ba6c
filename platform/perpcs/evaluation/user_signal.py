"""How much a key says of the user: is a user known again by it, and do its scores differ between users?

Shapes: U users, P projections, d a query's size, n sharers, N sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from perpcs.keys.gate import gate_queries
from perpcs.lora.inject import BankedModel
from perpcs.population.batches import collate
from perpcs.population.prompts import Encoded
from perpcs.records import Projection


@dataclass(frozen=True)
class UserSignal:
    """What one key tells of the users of an experiment."""

    recognised: float
    """How often a half of a history is more like the user's other half than like another user's half; chance is 0.5."""
    common: float
    """Share of the scores' variance between sharers that is the same for every user: 1, everybody gets the same sharers."""
    likeness: float | None
    """Rank correlation of scores with the known likeness of preferences, mean over users; None where it is not known."""
    likeness_centred: float | None
    """The same after each sharer's mean score over all users is taken off."""


def user_signal(
    first_UPd: np.ndarray, second_UPd: np.ndarray, scores_Un: np.ndarray, truth_Un: np.ndarray | None
) -> UserSignal:
    """From the queries of both halves of the users' histories, their scores, and the known likeness."""
    own_n = scores_Un.mean(0)
    return UserSignal(
        recognised=recognised(first_UPd, second_UPd),
        common=common_share(scores_Un),
        likeness=None if truth_Un is None else rank_correlation(scores_Un, truth_Un),
        likeness_centred=None if truth_Un is None else rank_correlation(scores_Un - own_n, truth_Un),
    )


def recognised(first_UPd: np.ndarray, second_UPd: np.ndarray) -> float:
    """Share of the pairs (user, another) in which the mean cosine over projections is larger to one's own second half."""
    like_UV = np.einsum("upd,vpd->uv", _unit(first_UPd), _unit(second_UPd))
    others = ~np.eye(len(like_UV), dtype=bool)
    return float((np.diag(like_UV)[:, None] > like_UV)[others].mean())


def common_share(scores_Un: np.ndarray) -> float:
    """Variance of the sharers' mean scores, over that and the variance of what a user's scores differ from them."""
    mean_n = scores_Un.mean(0)
    rest_Un = scores_Un - mean_n
    own = (rest_Un - rest_Un.mean(1, keepdims=True)).var()
    return float(mean_n.var() / max(mean_n.var() + own, 1e-30))


def rank_correlation(a_Un: np.ndarray, b_Un: np.ndarray) -> float:
    """Spearman's, mean over users."""
    a, b = (rankdata(x, axis=1) for x in (a_Un, b_Un))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return float(((a * b).sum(1) / np.maximum(np.sqrt((a**2).sum(1) * (b**2).sum(1)), 1e-12)).mean())


@torch.no_grad()
def base_gate_queries(model: BankedModel, users: Sequence[Sequence[Encoded]]) -> np.ndarray:
    """[U, P, d] gate queries at the plain base (assembly sees the already assembled projections as well). Projections of
    several input sizes are padded with zeros."""
    batch = collate([e for items in users for e in items], pad_id=model.pad_id, device=model.device)
    slot_N = torch.tensor([u for u, items in enumerate(users) for _ in items], device=model.device)
    seen = _Inputs(slot_N, batch.labels[:, -batch.label_span :] != -100, len(users))
    model.label_logits(batch, source=seen)
    found = [seen.queries[p.name] for p in model.projections]
    widest = max(q.shape[1] for q in found)
    return np.stack([np.pad(q, ((0, 0), (0, widest - q.shape[1]))) for q in found], axis=1)


class _Inputs:
    """Looks at every projection's input and adds nothing to its output."""

    def __init__(self, slot_N: Tensor, counted_NL: Tensor, users: int) -> None:
        self.slots, self.counted, self.users = slot_N, counted_NL, users
        self.queries: dict[str, np.ndarray] = {}

    def delta(self, projection: Projection, x_NTi: Tensor) -> Tensor:
        """See `DeltaSource`."""
        if projection.name not in self.queries:  # the last layer's are met twice, by all positions first
            queries = gate_queries(x_NTi, self.counted, self.slots, users=self.users)
            self.queries[projection.name] = queries.cpu().numpy()
        return x_NTi.new_zeros(*x_NTi.shape[:-1], projection.d_out)


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-20))
