"""Two attacks on a sharer's pieces by somebody who holds the pool and a candidate item (METHOD: the pool is shared).

loss: the lower an item's loss under the sharer's pieces, the rather it was trained on.
calibrated: the same, measured against the loss under other sharers' pieces, mean and spread, as LiRA does offline:
what is easy for everybody gives nothing away.

Shapes: S sharers, M items, c references.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from perpcs.audit.membership import Scores
from perpcs.evaluation.likelihood import label_losses
from perpcs.lora.bank import AdapterBank
from perpcs.lora.inject import BankedModel
from perpcs.population.prompts import Encoded
from perpcs.seeds import rng

Attack = Literal["loss", "calibrated"]
ATTACKS: tuple[Attack, ...] = ("loss", "calibrated")
_LEAST_SPREAD = 1e-3
"""Nats: below this the references agree so well that their spread says nothing."""


def references(ids: Sequence[str], sharer: str, *, count: int, seed: int) -> list[int]:
    """Places of `count` other sharers, drawn once per attacked sharer."""
    others = [i for i, other in enumerate(ids) if other != sharer]
    picked = rng(seed, "audit", sharer).permutation(len(others))[:count].tolist()
    return sorted(others[i] for i in picked)


def losses(
    model: BankedModel, bank: AdapterBank, items: Sequence[Encoded], slots: Sequence[int], *, batch: int = 256
) -> np.ndarray:
    """[len(slots), M] mean loss (nats per label token) of each item under each slot's adapter."""
    whose = np.repeat(slots, len(items)).tolist()
    found = label_losses(model, list(items) * len(slots), bank=bank, slots=whose, batch=batch)
    return found.reshape(len(slots), len(items))


def scores(own_M: np.ndarray, others_cM: np.ndarray, attack: Attack) -> np.ndarray:
    """[M] from an item's loss under the attacked pieces and under the references' pieces; higher: rather a member."""
    if attack == "loss":
        return -own_M
    return (others_cM.mean(0) - own_M) / np.maximum(others_cM.std(0), _LEAST_SPREAD)


def attack_sharer(
    model: BankedModel,
    bank: AdapterBank,
    items: tuple[Sequence[Encoded], Sequence[Encoded]],
    *,
    slot: int,
    against: Sequence[int],
) -> Mapping[Attack, Scores]:
    """Both attacks on one sharer. items: (members, non-members); against: slots of the references."""
    members, others = items
    found = losses(model, bank, [*members, *others], [slot, *against])
    cut = len(members)
    made = {attack: scores(found[0], found[1:], attack) for attack in ATTACKS}
    return {attack: Scores(values[:cut], values[cut:]) for attack, values in made.items()}
