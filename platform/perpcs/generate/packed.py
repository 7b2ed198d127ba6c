"""LoRA for a packed row: the tokens of many requests one after the other, each with its own slot.

Continuous batching packs a step's tokens into one row: hundreds for a request whose prompt is read, one for a request
that is being answered. Slots with few tokens share one batched product, padded to one width; a slot with many tokens
gets a product of its own.

Shape suffixes: T tokens of the row, S slots of the bank, G slots in the shared product, M tokens per slot in it,
r rank, i / o in- and output size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perpcs.lora.bank import AdapterBank
from perpcs.records import Projection

BASE = -1
"""Slot of a token that uses the base model alone."""
FEW = (16, 8, 4, 2, 1)
"""Tokens per slot up to which the shared product may go, widest first. Measured on one CPU core with rank 8: it takes
0.4 to 1.0 of the time of products of their own up to 16 tokens per slot at hidden 128 and 1,024, more above 32."""


@dataclass(frozen=True)
class Packing:
    """Where each slot's tokens are in a row of T tokens; made once per step and used by every layer."""

    tokens: int
    few_slots_G: Tensor | slice
    """The slots of the shared product, in ascending order; a slice of the bank where they lie close together, because
    then their factors need not be copied."""
    few_rows_GM: Tensor
    """Token index of each place; places without a token repeat token 0 and are dropped afterwards."""
    few_places: Tensor
    """Flat places of few_rows_GM that hold a token, in the order of the tokens."""
    few_tokens: Tensor
    """Their token indices, ascending."""
    many: tuple[tuple[int, Tensor], ...]
    """(slot, token indices) of the slots with a product of their own."""

    @classmethod
    def of(cls, slots: Sequence[int], *, device: torch.device | str = "cpu") -> Packing:
        """slots[t] is the slot of token t, or BASE."""
        tokens_of: dict[int, list[int]] = {}
        for token, slot in enumerate(slots):
            if slot != BASE:
                tokens_of.setdefault(slot, []).append(token)
        limit = _width([len(t) for t in tokens_of.values()])
        few = {s: t for s, t in sorted(tokens_of.items()) if len(t) <= limit}
        product: Sequence[int] = _close_together(list(few))
        groups = [few.get(s, []) for s in product]
        width = max(map(len, groups), default=0)
        rows = [t + [0] * (width - len(t)) for t in groups]
        places = sorted((token, g * width + m) for g, t in enumerate(groups) for m, token in enumerate(t))
        index = lambda values: torch.tensor(values, dtype=torch.int64, device=device)  # noqa: E731
        return cls(
            tokens=len(slots),
            few_slots_G=slice(product.start, product.stop) if isinstance(product, range) else index(product),
            few_rows_GM=index(rows).view(len(rows), width),
            few_places=index([place for _, place in places]),
            few_tokens=index([token for token, _ in places]),
            many=tuple((s, index(t)) for s, t in tokens_of.items() if len(t) > limit),
        )


def _width(counts: Sequence[int]) -> int:
    """The widest shared product of which at most half is padding."""
    for width in FEW:
        inside = [n for n in counts if n <= width]
        if len(inside) * width <= 2 * sum(inside):
            return width
    raise AssertionError("a product of width 1 has no padding")


def _close_together(slots: list[int]) -> Sequence[int]:
    """The slots, or the range around them when at most a third of it would be computed for nothing."""
    around = range(slots[0], slots[-1] + 1) if slots else range(0)
    return around if len(around) <= 1.5 * len(slots) else slots


def packed_delta(x_Ti: Tensor, a_Sri: Tensor, b_Sor: Tensor, packing: Packing, *, scale: float) -> Tensor:
    """scale * b[slot] a[slot] x for every token, zero for tokens of the base: [T, o]."""
    few_xo = _few_delta(x_Ti, a_Sri, b_Sor, packing, scale=scale) if packing.few_tokens.numel() else None
    if few_xo is not None and len(few_xo) == packing.tokens:
        return few_xo
    out_To = x_Ti.new_zeros(x_Ti.shape[0], b_Sor.shape[1])
    if few_xo is not None:
        out_To.index_copy_(0, packing.few_tokens, few_xo)
    for slot, tokens in packing.many:
        h_tr = x_Ti.index_select(0, tokens) @ a_Sri[slot].to(x_Ti.dtype).T
        out_To.index_copy_(0, tokens, (h_tr * scale) @ b_Sor[slot].to(x_Ti.dtype).T)
    return out_To


def _few_delta(x_Ti: Tensor, a_Sri: Tensor, b_Sor: Tensor, packing: Packing, *, scale: float) -> Tensor:
    """The shared product: a row for each of few_tokens."""
    a_Gri = a_Sri[packing.few_slots_G].to(x_Ti.dtype)
    b_Gor = b_Sor[packing.few_slots_G].to(x_Ti.dtype)
    x_GMi = x_Ti.index_select(0, packing.few_rows_GM.flatten()).view(*packing.few_rows_GM.shape, -1)
    y_GMo = torch.bmm(torch.bmm(x_GMi, a_Gri.transpose(1, 2)) * scale, b_Gor.transpose(1, 2))
    return y_GMo.flatten(0, 1).index_select(0, packing.few_places)


def packed_delta_loop(
    x_Ti: Tensor, a_Sri: Tensor, b_Sor: Tensor, slots: Sequence[int], *, scale: float
) -> Tensor:
    """The same, one token after the other: the oracle of `packed_delta`."""
    zero = x_Ti.new_zeros(b_Sor.shape[1])
    rows = [
        zero if s == BASE else scale * (b_Sor[s] @ (a_Sri[s] @ x)) for x, s in zip(x_Ti, slots, strict=True)
    ]
    return torch.stack(rows)


class PackedSource:
    """`DeltaSource` of one step of continuous batching."""

    def __init__(self, bank: AdapterBank, packing: Packing, *, rank: int | None = None) -> None:
        """rank: of the adapters in this step; what the bank has beyond it is zero and left out. None: the bank's."""
        self.bank, self.packing, self.rank = bank, packing, rank or bank.rank

    def delta(self, projection: Projection, x_1Ti: Tensor) -> Tensor:
        """[1, T, i] -> [1, T, o]; see `DeltaSource`."""
        assert x_1Ti.shape[:2] == (1, self.packing.tokens), x_1Ti.shape
        a_Sri, b_Sor = self.bank.factors(projection.name)
        a_Sri, b_Sor = a_Sri[:, : self.rank], b_Sor[:, :, : self.rank]
        return packed_delta(x_1Ti[0], a_Sri, b_Sor, self.packing, scale=self.bank.scale).unsqueeze(0)
