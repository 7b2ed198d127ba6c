"""Re-ranking: keys make a shortlist of whole sharers, the history's likelihood decides about it (METHOD section 4).

    w_j = s(n) exp(-L_j / T) / (exp(-L_0 / T) + sum_i exp(-L_i / T)),    s(n) = min(1, sqrt(n / sure))

L_j is the user's mean item loss under sharer j's whole LoRA, L_0 under the adapted base alone; n is the number of the
user's items (see `trust`). The base's share goes to nobody: where no sharer explains the history better than the base
does, little or nothing is added to it.

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
    # A candidate is a row of its own, of one piece: stacked pieces would be computed with for all the others as well.
    rows_UV = np.concatenate([near_Uc[:, :1], near_Uc], axis=1)
    there_UVP = shared_pieces(pieces)[rows_UV]
    there_UVP[:, 0] = False
    out: list[np.ndarray] = []
    for group in passes(users, items=max(1, items_per_pass // rows_UV.shape[1])):
        part = slice(len(out), len(out) + len(group))
        rows_S, there_SP = rows_UV[part].ravel(), there_UVP[part].reshape(-1, there_UVP.shape[2])
        ordinals_SP1 = np.broadcast_to(rows_S[:, None, None], (*there_SP.shape, 1))
        mixture = mixture_of(pieces, ordinals_SP1, device=model.device)
        asked = [user for user in group for _ in range(rows_UV.shape[1])]
        found = item_losses_of(model, asked, mixture, there_SP[:, None, :, None].astype(np.float32))
        losses = [loss[0] for loss in found]
        out += [np.stack(losses[i : i + rows_UV.shape[1]]) for i in range(0, len(losses), rows_UV.shape[1])]
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


def trust(items: int, sure: int) -> float:
    """The factor of an assembly that was chosen and weighed by so few items: sqrt(items / sure), at most 1.

    What is estimated from n items is off by about 1 / sqrt(n); with one item a whole assembly is worse than the adapted
    base (docs/findings.md), half of one is not.
    """
    return min(1.0, (items / sure) ** 0.5) if sure else 1.0
