"""Turning k weighted pieces into one pair of factors. Shapes: k pieces, r rank, i / o in- and output size; with leading
dimensions, e.g. of users, for each of these.

average: A = sum w A_j, B = sum w B_j: the papers' rule; (sum w B)(sum w A) is not sum w B A.
concat:  rank k r, exactly sum w B_j A_j.
svd:     the best rank-r approximation of the exact sum, by QR of the thin factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from perpcs.assembly.pieces import Pieces
from perpcs.errors import ConfigError
from perpcs.lora.bank import Adapter, Factors
from perpcs.records import Recipe

Merge = Literal["average", "concat", "svd"]
MERGES: tuple[Merge, ...] = ("average", "concat", "svd")


def merged_rank(merge: str, *, rank: int, k: int) -> int:
    """Rank of the merged factors."""
    return rank * k if merge == "concat" else rank


def merge_pieces(a_kri: Tensor, b_kor: Tensor, weight_k: Tensor, *, merge: str) -> Factors:
    """(a [R, i], b [o, R]) with R = `merged_rank`. Raises ConfigError for an unknown merge."""
    if merge == "average":
        a_ri = torch.einsum("...k,...kri->...ri", weight_k, a_kri)
        return a_ri, torch.einsum("...k,...kor->...or", weight_k, b_kor)
    a_Ri = a_kri.flatten(-3, -2)
    b_oR = (b_kor * weight_k[..., None, None]).movedim(-3, -2).flatten(-2)
    if merge == "concat":
        return a_Ri, b_oR
    if merge == "svd":
        return low_rank(a_Ri, b_oR, a_kri.shape[-2])
    raise ConfigError(f"merge: {merge!r} is unknown; use one of {', '.join(MERGES)}")


def low_rank(a_Ri: Tensor, b_oR: Tensor, rank: int) -> Factors:
    """The best rank-`rank` approximation of b a, without forming the o x i matrix."""
    q_a, r_a = torch.linalg.qr(a_Ri.mT)
    q_b, r_b = torch.linalg.qr(b_oR)
    u, s, vt = torch.linalg.svd(r_b @ r_a.mT)
    root = s[..., :rank].sqrt()
    return (vt[..., :rank, :] * root[..., None]) @ q_a.mT, (q_b @ u[..., :rank]) * root[..., None, :]


def adapter_from_recipe(recipe: Recipe, pieces: Pieces) -> Adapter:
    """The adapter a recipe stands for; the same bits every time for the same pool version."""
    names = [p.name for p in pieces.spec.projections]
    used = {name: recipe.codes[j] != 0 for j, name in enumerate(names)}
    wanted = {name: recipe.ordinals[j][used[name]].astype(np.int64) for j, name in enumerate(names)}
    fetched = pieces.fetch({name: o for name, o in wanted.items() if o.size})
    weights = recipe.weights
    kept = {name: weights[j][used[name]] for j, name in enumerate(names)}
    return _merge_all(fetched, kept, recipe.merge)


def _merge_all(
    fetched: Mapping[str, tuple[np.ndarray, np.ndarray]], weights: Mapping[str, np.ndarray], merge: str
) -> Adapter:
    return {
        name: merge_pieces(
            torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(weights[name]), merge=merge
        )
        for name, (a, b) in fetched.items()
    }
