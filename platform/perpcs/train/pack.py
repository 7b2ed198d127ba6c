"""One pack: every step is a forward and a backward over the items of all its users.

A user's result does not depend on the pack: own data order, own mean loss over own label tokens, own clipping, own
schedule and end, own dropout masks, and an optimiser that works element by element. The sum of the users' losses is
what is differentiated; passes of a step (`buckets`) only add up.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from perpcs.config.schema import TrainConfig
from perpcs.lora.bank import AdapterBank, SlotParameters, check_rank
from perpcs.lora.dropout import Dropout, user_seeds
from perpcs.lora.inject import BankedModel
from perpcs.lora.kernel import Slots
from perpcs.lora.mixture import Mixture, MixtureSource
from perpcs.lora.sources import BankSource, DeltaSource, GatedSource
from perpcs.train.data import ItemTable, PackOrder, UserData, Visits, buckets, seed_for, usable
from perpcs.train.host import keep_freed_memory
from perpcs.train.loss import item_losses
from perpcs.train.optimiser import RowAdamW, clip_rows_, learning_rate
from perpcs.train.team import ALONE, Journal, State, Team

__all__ = ["PackLosses", "Passes", "UserData", "train_adapters", "train_gates", "train_weights"]

SMOOTH = 10
"""Steps whose mean loss decides about an early end."""

MakeSource = Callable[[Slots, Dropout | None], DeltaSource]


@dataclass(frozen=True)
class Passes:
    """How a step is cut into forward passes: changes cost and memory, never results beyond float noise."""

    overhead: int = 300
    """What a further pass costs beside its tokens, in tokens: buckets are made where that saves more padding."""
    tokens: int = 0
    """Most tokens of a pass; 0: no limit. See `perpcs.train.planner`."""
    again: bool = False
    """Compute activations again in the backward pass: a third more work, memory of one layer."""
    reuse: bool = True
    """Keep the states below the lowest adapted layer instead of computing them at every visit of an item."""


AS_FITS = Passes()
"""Buckets where they pay, no limit on memory."""


@dataclass(frozen=True)
class PackLosses:
    """Losses of a pack, [steps, S], NaN after a user's end; the tokens that went through the model, padding included;
    and how many steps each user made."""

    losses: Tensor
    tokens: int
    steps: tuple[int, ...]

    def final(self, slot: int) -> float:
        """Mean loss over the last tenth of the user's steps; NaN when its training went astray."""
        own = self.losses[: self.steps[slot], slot]
        return float(own[-max(1, len(own) // 10) :].mean())


def train_adapters(
    model: BankedModel,
    bank: AdapterBank,
    users: Sequence[UserData],
    config: TrainConfig,
    *,
    seed: int,
    dropout: float = 0.0,
    passes: Passes = AS_FITS,
    team: Team = ALONE,
    journal: Journal | None = None,
) -> PackLosses:
    """Train slot s of the bank on the s-th user's items, from what the slot holds, in place (METHOD section 2, step 3).

    Every process of a `team` makes the same call and ends with the same bank. With a `journal` a training that was killed
    goes on from the last state kept there, to the same end.

    Raises ConfigError for a rank above a layer's size, DataError for a user without items to train on.
    """
    check_rank(bank.projections, bank.rank)
    pack = _Pack(model, users, config, seed=seed, passes=passes)
    pack.team = team

    def source(slots: Slots, dropped: Dropout | None) -> DeltaSource:
        return BankSource(bank, slots, dropout=dropped)

    return pack.train(bank.parameters, source, dropout=dropout, journal=journal)


def train_gates(
    model: BankedModel,
    bank: AdapterBank,
    users: Sequence[UserData],
    config: TrainConfig,
    *,
    seed: int,
    passes: Passes = AS_FITS,
) -> tuple[SlotParameters, PackLosses]:
    """Train one gate per user and projection with everything else frozen (METHOD section 2, step 4); gates start at zero."""
    shapes = {p.name: (p.d_in,) for p in bank.projections}
    gates = SlotParameters(shapes, len(users), device=model.device)
    pack = _Pack(model, users, config, seed=seed, passes=passes, own_steps=False)

    def source(slots: Slots, _: Dropout | None) -> DeltaSource:
        return GatedSource(bank, gates.views, slots)

    return gates, pack.train(gates, source)


def train_weights(
    model: BankedModel,
    mixture: Mixture,
    start_SPc: Tensor,
    users: Sequence[UserData],
    config: TrainConfig,
    *,
    seed: int,
    passes: Passes = AS_FITS,
) -> tuple[Tensor, PackLosses]:
    """Fit every user's mixing weights [S, P, c] of fixed pieces, from `start_SPc` on (METHOD section 4, fitted weights).

    The weights are free: neither positive nor of sum one. What is trained, and what weight decay shrinks, is their
    distance from the start. P counts the mixture's projections in its order.
    """
    names, pieces = list(mixture.factors), start_SPc.shape[2]
    change = SlotParameters(dict.fromkeys(names, (pieces,)), len(users), device=model.device)
    start = {name: start_SPc[:, j].to(model.device) for j, name in enumerate(names)}
    pack = _Pack(model, users, config, seed=seed, passes=passes)

    def source(slots: Slots, _: Dropout | None) -> DeltaSource:
        return MixtureSource(mixture, {n: start[n] + change.views[n] for n in names}, slots)

    losses = pack.train(change, source)
    return torch.stack([start[n] + change.views[n] for n in names], 1), losses


class _Pack:
    """The users of one pack, their data, and the training of whatever rows of parameters they have."""

    team = ALONE

    def __init__(
        self,
        model: BankedModel,
        users: Sequence[UserData],
        config: TrainConfig,
        *,
        seed: int,
        passes: Passes,
        own_steps: bool = True,
    ) -> None:
        users = [usable(user) for user in users]
        self.model, self.config, self.passes, self.size = model, config, passes, len(users)
        self.steps = [(own_steps and user.steps) or config.steps for user in users]
        self.order = PackOrder(users, batch=config.batch, seed=seed)
        self.table = ItemTable([e for user in users for e in user.examples], pad_id=model.pad_id)
        self.mask_seeds = user_seeds([seed_for(u, seed) for u in users], [u.user_id for u in users])
        self.states = (
            _lower_states(model, self.table, passes) if passes.reuse and model.layers.first else None
        )

    def train(
        self,
        parameters: SlotParameters,
        source: MakeSource,
        *,
        dropout: float = 0.0,
        journal: Journal | None = None,
    ) -> PackLosses:
        """Train all rows in place, each for its own number of steps."""
        # The gradient views are strided by design (one row per user); torch notes once that this is not its usual layout.
        warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
        if self.model.device.type == "cpu":
            keep_freed_memory()
        grad_SD = parameters.start_training()
        optimiser = RowAdamW(parameters.flat, weight_decay=self.config.weight_decay)
        losses: list[Tensor] = []
        tokens, active, made = 0, list(range(self.size)), [0] * self.size
        kept = None if journal is None else journal.load()
        before = 0 if kept is None else optimiser.go_on(kept)
        while active := self._still_training(active, losses):
            step = len(losses)
            visits = self.order.step(step, active)
            if (
                kept is not None and step < before
            ):  # made before the kill; the order of items must not miss it
                loss_S, used = kept["losses"][step].to(self.model.device), 0
            else:
                grad_SD.zero_()
                loss_S, used = self._forward_backward(visits, source, dropout)
                self.team.add_up(grad_SD, loss_S)
                clip_rows_(grad_SD, self.config.clip)
                optimiser.step(grad_SD, self._rates(step, active))
            losses.append(loss_S)
            tokens += used
            for slot in active:
                made[slot] += 1
            if journal is not None and step >= before:
                journal.step(partial(_state, optimiser, losses))
        parameters.end_training()
        return PackLosses(torch.stack(losses).cpu(), tokens, tuple(made))

    def _still_training(self, active: list[int], losses: Sequence[Tensor]) -> list[int]:
        """Users with steps to go, and not ended early by `stop_loss`."""
        step = len(losses)
        active = [s for s in active if step < self.steps[s]]
        if not self.config.stop_loss or step < SMOOTH:
            return active
        recent = torch.stack(list(losses[-SMOOTH:])).mean(0).tolist()
        return [s for s in active if not recent[s] < self.config.stop_loss]

    def _rates(self, step: int, active: Sequence[int]) -> float | Tensor:
        rate = {
            s: learning_rate(step, steps=self.steps[s], warmup=self.config.warmup, peak=self.config.lr)
            for s in active
        }
        if len(active) == self.size and len(set(rate.values())) == 1:
            return rate[0]
        return torch.tensor([rate.get(s, 0.0) for s in range(self.size)], device=self.model.device)

    def _forward_backward(self, visits: Visits, source: MakeSource, dropout: float) -> tuple[Tensor, int]:
        """([S] loss of each user, NaN for those not in it; tokens). Gradients add up in the parameters' buffer."""
        labels_S = np.bincount(visits.slot, weights=self.table.label[visits.item], minlength=self.size)
        loss_S = torch.zeros(self.size, device=self.model.device)
        tokens = 0
        lengths, mine = self.table.length[visits.item], self.team.part(len(visits.item))
        for bucket in buckets(lengths[mine], overhead=self.passes.overhead, most=self.passes.tokens):
            rows = mine[bucket]
            slot_N = torch.from_numpy(visits.slot[rows])
            share_N = torch.from_numpy(1 / labels_S[visits.slot[rows]]).float()
            nll_N = self._losses(visits, rows, source, dropout) * share_N.to(loss_S.device)
            nll_N.sum().backward()
            loss_S.index_add_(0, slot_N.to(loss_S.device), nll_N.detach())
            tokens += len(rows) * int(lengths[rows].max())
        idle_S = torch.from_numpy(labels_S == 0).to(loss_S.device)
        return loss_S.masked_fill_(idle_S, math.nan), tokens

    def _losses(self, visits: Visits, rows: np.ndarray, source: MakeSource, dropout: float) -> Tensor:
        """[N] summed label losses of one pass."""
        items, device = visits.item[rows], self.model.device
        batch = self.table.batch(items, device=device)
        states = (
            None
            if self.states is None
            else self.states[torch.from_numpy(self.table.place(items)[0]).to(device)]
        )
        masks = self._dropout(visits, rows, batch.attention_mask, dropout) if dropout else None
        logits = self.model.label_logits(
            batch, source=source(self._slots(visits, rows), masks), states=states, again=self.passes.again
        )
        return item_losses(logits, batch.labels[:, -batch.label_span :])[0]

    def _slots(self, visits: Visits, rows: np.ndarray) -> Slots:
        if len(rows) == self.size * self.config.batch:
            return Slots.blocks(self.size, self.config.batch, device=self.model.device)
        return Slots(torch.from_numpy(visits.slot[rows]).to(self.model.device))

    def _dropout(self, visits: Visits, rows: np.ndarray, mask_NT: Tensor, p: float) -> Dropout:
        seed_N = self.mask_seeds[torch.from_numpy(visits.slot[rows])].to(mask_NT.device)
        count_N = torch.from_numpy(visits.count[rows]).to(mask_NT.device)
        return Dropout(p, seed_N, count_N, (mask_NT.cumsum(1) - 1).clamp(min=0))


def _state(optimiser: RowAdamW, losses: Sequence[Tensor]) -> State:
    return optimiser.state() | {"losses": torch.stack(list(losses))}


def _lower_states(model: BankedModel, table: ItemTable, passes: Passes) -> Tensor:
    """[tokens of the table, d]: what the lowest adapted layer sees of every item, in the base's type."""
    out: Tensor | None = None
    most = passes.tokens or 8192
    for rows in buckets(table.length, overhead=passes.overhead, most=most):
        states_NTd = model.lower_states(table.batch(rows, device=model.device))
        place_NT, real_NT = table.place(rows)
        # By numbers found here: a mask would make a GPU wait to say how many they are.
        source, target = (
            torch.from_numpy(t).to(model.device) for t in (np.flatnonzero(real_NT), place_NT[real_NT])
        )
        if out is None:
            out = states_NTd.new_empty(len(table.tokens), states_NTd.shape[-1])
        out.index_copy_(0, target, states_NTd.flatten(0, 1).index_select(0, source))
    assert out is not None
    return out
