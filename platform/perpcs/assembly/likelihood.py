"""How likely a history is under given weightings of given pieces: what re-ranking judges by. Forward passes only.

Shapes: U users, P projections, c pieces of a user's shortlist, V weightings of them, M items of a user.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from perpcs.assembly.pieces import Pieces
from perpcs.lora.inject import BankedModel
from perpcs.lora.kernel import Slots
from perpcs.lora.mixture import Mixture, MixtureSource
from perpcs.train.data import ItemTable, UserData, buckets
from perpcs.train.loss import item_losses
from perpcs.train.pack import AS_FITS


def mixture_of(pieces: Pieces, ordinals_UPc: np.ndarray, *, device: torch.device) -> Mixture:
    """The pieces of all users' shortlists, stacked, with one fetch; -1: a piece that adds nothing, whatever its weight."""
    users, _, c = ordinals_UPc.shape
    spec = pieces.spec
    wanted = {p.name: ordinals_UPc[:, j].ravel() for j, p in enumerate(spec.projections)}
    fetched = pieces.fetch({name: np.maximum(ordinals, 0) for name, ordinals in wanted.items()})
    factors = {}
    for name, (a, b) in fetched.items():
        b = np.where((wanted[name] >= 0)[:, None, None], b, np.float32(0))
        a_Sri = torch.from_numpy(a).unflatten(0, (users, c)).flatten(1, 2)
        b_Sor = torch.from_numpy(b).unflatten(0, (users, c)).transpose(1, 2).flatten(2)
        factors[name] = (a_Sri.to(device), b_Sor.contiguous().to(device))
    return Mixture(factors, spec.rank, spec.alpha / spec.rank)


@torch.no_grad()
def item_losses_of(
    model: BankedModel,
    users: Sequence[UserData],
    mixture: Mixture,
    weights_UVPc: np.ndarray,
    *,
    tokens: int = 0,
) -> list[np.ndarray]:
    """Per user [V, M]: mean loss (nats per label token) of every item under every weighting.

    All users and weightings are rows of the same passes, of at most `tokens` tokens (0: no limit).
    """
    table = ItemTable([e for user in users for e in user.examples], pad_id=model.pad_id)
    counts, count = np.array([len(user.examples) for user in users]), weights_UVPc.shape[1]
    user_M = np.repeat(np.arange(len(users)), counts)
    item_N = np.repeat(np.arange(len(user_M)), count)
    slot_N = user_M[item_N]
    chosen_N = slot_N * count + np.tile(np.arange(count), len(user_M))
    flat = torch.from_numpy(np.ascontiguousarray(weights_UVPc, np.float32)).flatten(0, 1).to(model.device)
    weights = {name: flat[:, j].contiguous() for j, name in enumerate(mixture.factors)}
    loss_N = np.zeros(len(item_N))
    for rows in buckets(table.length[item_N], overhead=AS_FITS.overhead, most=tokens):
        batch = table.batch(item_N[rows], device=model.device)
        slots, chosen = (Slots(torch.from_numpy(x[rows]).to(model.device)) for x in (slot_N, chosen_N))
        logits = model.label_logits(batch, source=MixtureSource(mixture, weights, slots, chosen=chosen))
        nll_n, labels_n = item_losses(logits, batch.labels[:, -batch.label_span :])
        loss_N[rows] = (nll_n / labels_n).double().cpu().numpy()
    return [part.T for part in np.split(loss_N.reshape(-1, count), np.cumsum(counts)[:-1])]
