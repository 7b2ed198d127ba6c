"""Mixing weights fitted to the history: the chosen pieces stay, a few numbers per projection are trained
(METHOD section 4). What is stored is a recipe like any other: the fitted weights as int8 codes times one scale.

Shapes: U users, P projections, c pieces per projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from perpcs.assembly.likelihood import mixture_of
from perpcs.assembly.pieces import Pieces
from perpcs.assembly.rules import Picks
from perpcs.assembly.select import code_weights
from perpcs.config.schema import TrainConfig
from perpcs.lora.inject import BankedModel
from perpcs.records import quantise_weights
from perpcs.train.data import UserData
from perpcs.train.pack import train_weights


def fitted_picks(
    model: BankedModel,
    users: Sequence[UserData],
    start: Sequence[Picks],
    pieces: Pieces,
    config: TrainConfig,
    *,
    epochs: int = 0,
    seed: int,
) -> list[Picks]:
    """The users' picks with weights fitted from where they are, `config.pack` users in one step, and no item visited much
    more often than `epochs` times (see `fit_steps`).

    Weights may become negative and need not sum to one: the sum is how much of the adapter is right for this user,
    which the training-free rules fix at one. The quantised weights are the adapter in use, as with every recipe.
    """
    users = [replace(user, steps=fit_steps(config, len(user.examples), epochs=epochs)) for user in users]
    out: list[Picks] = []
    for first in range(0, len(users), config.pack):
        group = slice(first, first + config.pack)
        out += _fit(model, users[group], start[group], pieces, config, seed=seed)
    return out


def fit_steps(config: TrainConfig, items: int, *, epochs: int) -> int:
    """Steps of a user with so many items: as configured, but no more than `epochs` visits of each need; 0: no limit."""
    return min(config.steps, math.ceil(epochs * items / config.batch)) if epochs else config.steps


def _fit(
    model: BankedModel,
    users: Sequence[UserData],
    start: Sequence[Picks],
    pieces: Pieces,
    config: TrainConfig,
    *,
    seed: int,
) -> list[Picks]:
    ordinals_UPc, weights_UPc = _padded(start)
    mixture = mixture_of(pieces, ordinals_UPc, device=model.device)
    fitted_UPc, _ = train_weights(model, mixture, torch.from_numpy(weights_UPc), users, config, seed=seed)
    # A place without a piece adds nothing; weight decay or rounding may still have given it a weight.
    weights = np.where(ordinals_UPc >= 0, fitted_UPc.cpu().numpy(), 0.0)
    return [(o, *quantise_weights(w)) for o, w in zip(ordinals_UPc, weights, strict=True)]


def _padded(picks: Sequence[Picks]) -> tuple[np.ndarray, np.ndarray]:
    """([U, P, c] ordinals, weights) of picks of any width; places that are not used are -1 and weigh nothing."""
    width = max(ordinals.shape[1] for ordinals, _, _ in picks)
    ordinals = np.stack([_widened(o, width, -1) for o, _, _ in picks])
    weights = np.stack([_widened(code_weights(c, scale), width, 0) for _, c, scale in picks])
    return ordinals, np.asarray(weights, np.float32)


def _widened(rows_Pk: np.ndarray, width: int, fill: int) -> np.ndarray:
    return np.pad(rows_Pk, ((0, 0), (0, width - rows_Pk.shape[1])), constant_values=fill)
