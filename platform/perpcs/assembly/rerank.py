"""Re-ranking: keys make a shortlist of whole sharers, the history's likelihood decides about it (METHOD section 4).

    w_j = exp(-L_j / T) / (exp(-L_0 / T) + sum_i exp(-L_i / T))

L_j is the user's mean item loss under sharer j's whole LoRA, L_0 under the adapted base alone. The base's share goes to
nobody: where no sharer explains the history better than the base does, little or nothing is added to it.

Forward passes only, all candidates of all users in the same batches. Shapes: U users, P projections, n sharers,
c candidates, k picks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perpcs.assembly.likelihood import item_losses_of, mixture_of
from perpcs.assembly.pieces import Pieces, shared_pieces
from perpcs.assembly.rules import Picks, best_sharers, passes
from perpcs.assembly.select import round_weights, top_sharers
from perpcs.lora.inject import BankedModel
from perpcs.train.data import UserData


def shortlist(
    queries: Mapping[str, np.ndarray], user_keys_Ud: np.ndarray, pieces: Pieces, c: int
) -> np.ndarray:
    """[U, c] ordinals: the best by gradient key, best first; the nearest by history key stands last where it is not
    among them."""
    _, near_Uc = best_sharers(queries, pieces, c)
    alike_Un = np.where(pieces.live, user_keys_Ud @ pieces.history_keys().T, -np.inf)
    alike_U = top_sharers(alike_Un, 1)[1][:, 0]
    absent_U = (near_Uc != alike_U[:, None]).all(axis=1)
    near_Uc[absent_U, -1] = alike_U[absent_U]
    return near_Uc


def candidate_losses(
    model: BankedModel,
    users: Sequence[UserData],
    pieces: Pieces,
    near_Uc: np.ndarray,
    *,
    items_per_pass: int,
) -> list[np.ndarray]:
    """Per user [1 + c, M]: loss of each item under the adapted base and under every candidate's whole LoRA."""
    there_UPc = shared_pieces(pieces).T[:, near_Uc].swapaxes(0, 1)
    alone_Vc = np.vstack([np.zeros(near_Uc.shape[1]), np.eye(near_Uc.shape[1])])
    out: list[np.ndarray] = []
    for group in passes(users, items=max(1, items_per_pass // len(alone_Vc))):
        rows = slice(len(out), len(out) + len(group))
        there = there_UPc[rows]
        mixture = mixture_of(pieces, np.broadcast_to(near_Uc[rows, None], there.shape), device=model.device)
        weights_UVPc = alone_Vc[None, :, None] * there[:, None]
        out += item_losses_of(model, group, mixture, weights_UVPc)
    return out


def likelihood_weights(loss_UV: np.ndarray, *, temperature: float) -> np.ndarray:
    """[U, c] weights of candidates from mean losses [U, 1 + c], the base's first. They sum to one less the base's share."""
    scaled = -(loss_UV - loss_UV.min(1, keepdims=True)) / temperature
    weight = np.exp(scaled)
    return np.asarray((weight / weight.sum(1, keepdims=True))[:, 1:])


def weighted_picks(near_Uc: np.ndarray, weights_Uc: np.ndarray, pieces: Pieces, *, top_k: int) -> list[Picks]:
    """The k heaviest candidates everywhere; the weight of the others is shared out among them."""
    kept_Uk, place_Uk = top_sharers(weights_Uc, min(top_k, near_Uc.shape[1]))
    kept_Uk = kept_Uk * (weights_Uc.sum(1) / np.maximum(kept_Uk.sum(1), 1e-12))[:, None]
    chosen_Uk = np.take_along_axis(near_Uc, place_Uk, 1)
    there_UPk = shared_pieces(pieces).T[:, chosen_Uk].swapaxes(0, 1)
    codes_UPk = np.where(there_UPk, round_weights(kept_Uk)[:, None], 0).astype(np.int8)
    ordinals_UPk = np.where(there_UPk, chosen_Uk[:, None], -1)
    return [(o, c, 1.0) for o, c in zip(ordinals_UPk, codes_UPk, strict=True)]
