"""The adapter bank: S users' LoRA factors, each user one contiguous row of numbers.

    flat [S, D]: row s = the factors a, b of every projection of slot s, one after the other
    a [S, r, i], b [S, o, r] of a projection: views into `flat`

One row per user makes clipping, the optimiser, saving and loading one operation for all projections, and gradients
accumulate in place into views of one [S, D] buffer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from perpcs.errors import ConfigError
from perpcs.records import Projection
from perpcs.seeds import seed_of

Factors = tuple[Tensor, Tensor]
"""(a [r, i], b [o, r]) of one user at one projection."""
Adapter = dict[str, Factors]
"""Factors by projection name: one user's whole adapter."""


class SlotParameters:
    """Named float32 tensors [S, …] that share one [S, D] buffer."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], slots: int, *, device: torch.device | str = "cpu"
    ) -> None:
        sizes = [math.prod(shape) for shape in shapes.values()]
        self.flat = torch.zeros(slots, sum(sizes), device=device)
        self.views = _cut(self.flat, shapes)
        self._shapes = dict(shapes)

    @property
    def slots(self) -> int:
        """S."""
        return self.flat.shape[0]

    def start_training(self) -> Tensor:
        """Make every view a leaf whose gradient accumulates in the returned buffer [S, D]; zero it between steps."""
        grad = torch.zeros_like(self.flat)
        for name, grad_view in _cut(grad, self._shapes).items():
            self.views[name].requires_grad_(True).grad = grad_view
        return grad

    def end_training(self) -> None:
        """The views need no gradient any more."""
        for view in self.views.values():
            view.requires_grad_(False).grad = None


def _cut(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    views, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        views[name] = flat[:, start:end].view(flat.shape[0], *shape)
        start = end
    return views


class AdapterBank:
    """LoRA factors of S users over the same projections; y += scale * b[slot] @ a[slot] @ x."""

    def __init__(
        self,
        projections: Sequence[Projection],
        slots: int,
        *,
        rank: int,
        scale: float,
        scales: Sequence[float] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        """All factors start at zero, so an untouched slot is the base model. `scales` gives every slot a factor of its
        own in place of `scale`: adapters of different ranks share a bank (alpha / their own rank)."""
        self.projections, self.rank, self.scale = tuple(projections), rank, scale
        if scales and len(scales) != slots:
            raise ValueError(f"scales: {len(scales)} given for {slots} slots")
        self._scale_S = torch.tensor(scales, device=device) if scales else None
        shapes: dict[str, tuple[int, ...]] = {}
        for p in projections:
            shapes[f"{p.name}/a"] = (rank, p.d_in)
            shapes[f"{p.name}/b"] = (p.d_out, rank)
        self.parameters = SlotParameters(shapes, slots, device=device)
        self._loaded_rank: dict[int, int] = {}

    @classmethod
    def holding(
        cls,
        projections: Sequence[Projection],
        adapters: Sequence[Adapter],
        *,
        scale: float,
        device: torch.device | str = "cpu",
    ) -> AdapterBank:
        """A bank with the s-th adapter in slot s, as wide as the widest; one without any piece is the base. Raises as
        `load` does."""
        rank = max((len(a) for adapter in adapters for a, _ in adapter.values()), default=1)
        bank = cls(projections, len(adapters), rank=rank, scale=scale, device=device)
        for slot, adapter in enumerate(adapters):
            bank.load(slot, adapter)
        return bank

    @property
    def slots(self) -> int:
        """S."""
        return self.parameters.slots

    def factors(self, projection: str) -> Factors:
        """(a [S, r, i], b [S, o, r]) of one projection: live views."""
        views = self.parameters.views
        return views[f"{projection}/a"], views[f"{projection}/b"]

    def rank_among(self, slots: Iterable[int]) -> int:
        """Rows of A beyond this are zero in all these slots, so products may leave them out. Counts for slots that were
        filled by `load` and not written to since; for others it is the bank's rank."""
        return max((self._loaded_rank.get(slot, self.rank) for slot in slots), default=self.rank)

    def scale_of(self, slot: int) -> float:
        """The factor of one slot's correction."""
        return self.scale if self._scale_S is None else float(self._scale_S[slot])

    def scaled(self, b_Sor: Tensor) -> Tensor:
        """b with every slot's scale multiplied in: cheaper there than on the outputs of all tokens."""
        if self._scale_S is not None:
            return b_Sor * self._scale_S.view(-1, 1, 1)
        return b_Sor if self.scale == 1.0 else b_Sor * self.scale

    @torch.no_grad()
    def load(self, slot: int, adapter: Adapter, *, checked: bool = False) -> None:
        """Put an adapter into a slot; one of lower rank is padded with zeros, absent projections become zero.

        checked: `check` has passed already, in another thread perhaps.

        Raises ValueError for a slot out of range, and as `check`; the slot and all others are then as before.
        """
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is out of range: the bank has slots 0 to {self.slots - 1}")
        if not checked:
            self.check(adapter)
        self.parameters.flat[slot].zero_()
        self._loaded_rank[slot] = max((len(a) for a, _ in adapter.values()), default=0)
        for name, (a, b) in adapter.items():
            a_Sri, b_Sor = self.factors(name)
            a_Sri[slot, : a.shape[0]].copy_(a)
            b_Sor[slot, :, : a.shape[0]].copy_(b)

    @torch.no_grad()
    def warm_start(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter over an initialised slot, to be trained on. Where its rank is lower, the rows of A beyond it
        stay as they were drawn: rows that are zero in A and in B would never learn. Raises as `load` does."""
        drawn = self.parameters.flat[slot].clone()
        self.load(slot, adapter)
        before = AdapterBank(self.projections, 1, rank=self.rank, scale=1.0, device=drawn.device)
        before.parameters.flat[0] = drawn
        for p in self.projections:
            used = len(adapter[p.name][0]) if p.name in adapter else 0
            self.factors(p.name)[0][slot, used:] = before.factors(p.name)[0][0, used:]

    def check(self, adapter: Adapter) -> None:
        """Raises ValueError for a rank above the bank's, a projection that it does not have, or values that are not
        finite."""
        for name, (a, b) in adapter.items():
            if f"{name}/a" not in self.parameters.views:
                raise ValueError(
                    f"{name}: the bank has no such projection; was the adapter made with other lora.targets?"
                )
            if a.shape[0] > self.rank:
                raise ValueError(f"{name}: rank {a.shape[0]} does not fit a bank of rank {self.rank}")
            if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
                raise ValueError(
                    f"{name}: the adapter has values that are not finite; train or export it again"
                )

    def adapter(self, slot: int) -> Adapter:
        """A copy of one slot's factors."""
        out = {}
        for p in self.projections:
            a_Sri, b_Sor = self.factors(p.name)
            out[p.name] = (a_Sri[slot].detach().clone(), b_Sor[slot].detach().clone())
        return out


def check_rank(projections: Sequence[Projection], rank: int) -> None:
    """Raises ConfigError when a rank is above a layer's size: b a could not use it."""
    small = min(projections, key=lambda p: min(p.d_in, p.d_out))
    most = min(small.d_in, small.d_out)
    if rank > most:
        raise ConfigError(
            f"lora.rank: {rank} is above the size of {small.name} ({small.d_in} -> {small.d_out}); use at most {most}"
        )


def initial_a(projection: Projection, rank: int, *, seed: int, user_id: str = "") -> Tensor:
    """The start of A, [r, d_in], uniform in ±1/sqrt(d_in) as PEFT draws it; B starts at zero.

    An empty `user_id` gives the initialisation that all users share.
    """
    draw = torch.Generator().manual_seed(seed_of(seed, "lora", projection.name, user_id))
    bound = projection.d_in**-0.5
    return (torch.rand(rank, projection.d_in, generator=draw) * 2 - 1) * bound


@torch.no_grad()
def initialise(
    bank: AdapterBank,
    users: Sequence[str],
    *,
    seed: int,
    shared: bool,
    ranks: Sequence[int] = (),
    seeds: Sequence[int] = (),
) -> None:
    """Draw every slot's A by (seed, projection) when shared, else by (own seed, projection, user); B is left at zero.

    `ranks`: rows of A beyond a slot's own rank stay zero, and training keeps them so. `seeds`: the users' own seeds,
    which a shared A cannot have.
    """
    ranks, seeds = ranks or [bank.rank] * len(users), seeds or [seed] * len(users)
    for p in bank.projections:
        a_Sri, _ = bank.factors(p.name)
        for slot, (user_id, rank, own) in enumerate(zip(users, ranks, seeds, strict=True)):
            drawn = (seed, "") if shared else (own, user_id)
            a_Sri[slot, :rank] = initial_a(p, rank, seed=drawn[0], user_id=drawn[1])
