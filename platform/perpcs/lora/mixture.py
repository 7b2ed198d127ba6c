"""A user's adapter as a weighted sum of c given pieces: the pieces are fixed, the weights are what is varied.

    delta = scale * sum_j w[j] b_j a_j x = scale * b (w . (a x)),  a [c r, i], b [o, c r]: the pieces stacked

Weights have an index of their own, so that many weightings of one user's pieces share their factors: S users' pieces,
V weightings. Shape suffixes as in `perpcs.lora.kernel`; c pieces, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from perpcs.lora.bank import Factors
from perpcs.lora.kernel import Slots
from perpcs.records import Projection


@dataclass(frozen=True)
class Mixture:
    """The stacked pieces of S users by projection name: (a [S, c r, i], b [S, o, c r]), and what scales their sum."""

    factors: Mapping[str, Factors]
    rank: int
    scale: float

    def delta(self, name: str, x_GWi: Tensor, weights_Gc: Tensor, slots: Slots) -> Tensor:
        """[G, W, o] of grouped tokens; G are the groups of `slots`."""
        a_Sri, b_Sor = self.factors[name]
        h_GWr = torch.bmm(x_GWi, slots.rows(a_Sri).to(x_GWi.dtype).transpose(1, 2))
        weight_Gr = weights_Gc.repeat_interleave(self.rank, dim=1) * self.scale
        return torch.bmm(
            h_GWr * weight_Gr.unsqueeze(1).to(h_GWr.dtype), slots.rows(b_Sor).to(x_GWi.dtype).transpose(1, 2)
        )


class MixtureSource:
    """Each sequence gets its user's pieces (`slots`) under one weighting (`chosen`). weights: name -> [V, c]."""

    def __init__(
        self, mixture: Mixture, weights: Mapping[str, Tensor], slots: Slots, *, chosen: Slots | None = None
    ) -> None:
        self.mixture, self.weights, self.slots = mixture, weights, slots
        self.chosen = chosen or slots

    def delta(self, projection: Projection, x_NTi: Tensor) -> Tensor:
        """See `DeltaSource`."""
        name = projection.name
        weights_Gc = self.chosen.rows(self.weights[name])
        y_GWo = self.mixture.delta(name, self.slots.group(x_NTi), weights_Gc, self.slots)
        return self.slots.ungroup(y_GWo, x_NTi)
