"""Gate-key assembly in one forward (METHOD section 2, steps 5 and 6): at each projection the query is pooled from its
input, pieces are found and mixed, and the mixed piece is used at once, so later layers see already assembled ones.

Shapes: N sequences, T tokens, L label positions, U users, k pieces, R merged rank, d projection input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perpcs.assembly.merge import merge_pieces
from perpcs.assembly.pieces import Pieces, usable
from perpcs.assembly.select import code_weights, round_weights, softmax_weights
from perpcs.keys.gate import gate_queries
from perpcs.lora.bank import Factors
from perpcs.lora.inject import BankedModel
from perpcs.lora.kernel import Slots, lora_delta
from perpcs.population.batches import collate
from perpcs.population.prompts import Encoded
from perpcs.records import Projection


@dataclass(frozen=True)
class Rule:
    """How pieces are chosen and mixed."""

    top_k: int
    temperature: float
    merge: str


@dataclass(frozen=True)
class Picks:
    """What one forward chose: by projection name (ordinals [U, k], codes [U, k])."""

    by_projection: dict[str, tuple[np.ndarray, np.ndarray]]


class AssemblingSource:
    """Chooses as the forward goes; the choice at a projection is a pure function of its input (see `choose`)."""

    def __init__(self, pieces: Pieces, rule: Rule, slot_N: Tensor, counted_NL: Tensor) -> None:
        self.pieces, self.rule, self.slots, self.counted = pieces, rule, Slots(slot_N), counted_NL
        self.users = int(slot_N.max()) + 1
        self.scale = pieces.spec.alpha / pieces.spec.rank
        self.picks: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._mixed: dict[str, Factors] = {}
        """(a, scale * b), kept for the call: the last layer's projections are met twice, by all positions and by those that
        count."""
        self._pooled: tuple[Tensor | None, Tensor] = (None, torch.empty(0))
        """Newest input and its queries: the projections for query, key and value have the same input."""

    def delta(self, projection: Projection, x_NTi: Tensor) -> Tensor:
        """See `DeltaSource`."""
        if projection.name not in self._mixed:
            self._mixed[projection.name] = self._assemble(projection.name, x_NTi)
        return lora_delta(x_NTi, *self._mixed[projection.name], self.slots)

    def _assemble(self, projection: str, x_NTi: Tensor) -> Factors:
        if self._pooled[0] is not x_NTi:
            self._pooled = (x_NTi, gate_queries(x_NTi, self.counted, self.slots.index, users=self.users))
        self.picks[projection] = ordinals, codes = choose(self.pieces, projection, self._pooled[1], self.rule)
        a_URi, b_UoR = mix(self.pieces, projection, ordinals, codes, self.rule)
        return a_URi.to(x_NTi), (b_UoR * self.scale).to(x_NTi)


def choose(pieces: Pieces, projection: str, queries_Ud: Tensor, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Top-k pieces and softmax weights for each user: (ordinals [U, k], codes [U, k])."""
    k = min(rule.top_k, len(usable(pieces)))
    scores, ordinals = pieces.search("gate", projection, queries_Ud.cpu().numpy(), k)
    return ordinals, round_weights(softmax_weights(scores, ordinals, temperature=rule.temperature))


def mix(
    pieces: Pieces, projection: str, ordinals_Uk: np.ndarray, codes_Uk: np.ndarray, rule: Rule
) -> tuple[Tensor, Tensor]:
    """Stacked merged factors of all users, (a [U, R, i], b [U, o, R]), read with one fetch."""
    # A place without a piece (-1) has weight zero, whatever is read for it.
    a_all, b_all = pieces.fetch({projection: np.maximum(ordinals_Uk, 0).ravel()})[projection]
    a_Ukri = torch.from_numpy(a_all).unflatten(0, ordinals_Uk.shape)
    b_Ukor = torch.from_numpy(b_all).unflatten(0, ordinals_Uk.shape)
    return merge_pieces(a_Ukri, b_Ukor, torch.from_numpy(code_weights(codes_Uk)), merge=rule.merge)


@torch.no_grad()
def assemble_forward(
    model: BankedModel, users: Sequence[Sequence[Encoded]], pieces: Pieces, rule: Rule
) -> Picks:
    """One forward over all users' items; every user gets one selection from all of its items."""
    slot_N = torch.tensor([u for u, items in enumerate(users) for _ in items], device=model.device)
    batch = collate([e for items in users for e in items], pad_id=model.pad_id, device=model.device)
    counted = batch.labels[:, -batch.label_span :] != -100
    source = AssemblingSource(pieces, rule, slot_N, counted)
    # As if for a loss: the last layer then does for label positions alone what no query and no later layer needs elsewhere.
    model.label_logits(batch, source=source)
    return Picks(source.picks)
