"""A pool in memory: six sharers trained a few steps on the random Llama of the tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from perpcs.assembly.merge import adapter_from_recipe
from perpcs.assembly.pieces import MemoryPieces
from perpcs.assembly.rules import make_recipe
from perpcs.config.schema import LoraConfig, TrainConfig
from perpcs.keys.history import unit_rows
from perpcs.lora.bank import AdapterBank
from perpcs.lora.kernel import Slots
from perpcs.lora.sources import BankSource
from perpcs.population.batches import collate
from perpcs.records import PoolSpec
from perpcs.train.sharers import train_sharers

LORA = LoraConfig(rank=4, alpha=8.0)
SKETCH = 16


@pytest.fixture(scope="session")
def share(banked):
    """share(users): their adapters, gates and keys."""

    def share(users):
        keys = unit_rows(np.random.default_rng(0).normal(size=(len(users), 5)))
        train = TrainConfig(steps=12, batch=4, lr=1e-2, warmup=1)
        gate = TrainConfig(steps=6, batch=4, lr=3e-2, warmup=1)
        return train_sharers(banked, users, LORA, train, gate=gate, sketch=SKETCH, history_keys=keys, seed=0)

    return share


@pytest.fixture(scope="session")
def pool_of(banked):
    """pool_of(sharers): them as a pool in memory."""

    def pool_of(sharers):
        spec = PoolSpec("base", LORA.rank, LORA.alpha, banked.projections, SKETCH, True, 5)
        return MemoryPieces(spec, sharers)

    return pool_of


@pytest.fixture(scope="session")
def sharers(share, session_user):
    return share([session_user(f"sharer-{i}", items=8, seed=3) for i in range(6)])


@pytest.fixture(scope="session")
def pieces(sharers, pool_of):
    return pool_of(sharers)


@pytest.fixture
def targets(make_user):
    """Histories of different lengths."""
    return [make_user(f"target-{i}", items=n, seed=5) for i, n in enumerate((7, 3, 5))]


@pytest.fixture
def losses_with(banked, pieces):
    """losses_with(user, picks): [M] mean label losses of the user's items under the adapter of the recipe that the
    picks make (None: under the base), one item at a time."""

    def losses_with(user, picks):
        source = None
        if picks is not None:
            adapter = adapter_from_recipe(make_recipe("u", "m", picks, pieces, merge="concat"), pieces)
            rank = max(a.shape[0] for a, _ in adapter.values())
            bank = AdapterBank(banked.projections, 1, rank=rank, scale=LORA.alpha / LORA.rank)
            bank.load(0, adapter)
            source = BankSource(bank, Slots(torch.tensor([0])))
        out = []
        for example in user.examples:
            batch = collate([example], pad_id=0)
            with torch.no_grad():
                logits = banked.label_logits(batch, source=source)
            out.append(float(F.cross_entropy(logits[0], batch.labels[0, -batch.label_span :])))
        return np.array(out)

    return losses_with
