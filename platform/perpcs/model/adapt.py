"""Task adaptation (METHOD section 2, step 1): one LoRA on base users' data, trained as a bank of one, then merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from perpcs.config.schema import AdaptConfig, TrainConfig
from perpcs.lora.bank import AdapterBank, initialise
from perpcs.lora.inject import BankedLinear, BankedModel
from perpcs.population.prompts import Encoded
from perpcs.train.pack import PackLosses, UserData, train_adapters
from perpcs.train.team import ALONE, Journal, Team


def adapt(
    model: BankedModel,
    examples: Sequence[Encoded],
    config: AdaptConfig,
    *,
    seed: int,
    team: Team = ALONE,
    journal: Journal | None = None,
) -> PackLosses:
    """Train the task LoRA and add it to the frozen weights in place; `team` and `journal` as in `train_adapters`."""
    bank = AdapterBank(
        model.projections, 1, rank=config.rank, scale=config.alpha / config.rank, device=model.device
    )
    initialise(bank, ["task"], seed=seed, shared=False)
    train = TrainConfig(
        steps=config.steps,
        batch=config.batch,
        lr=config.lr,
        warmup=max(1, config.steps // 20),
        weight_decay=config.weight_decay,
        clip=config.clip,
        pack=1,
    )
    losses = train_adapters(
        model, bank, [UserData("task", tuple(examples))], train, seed=seed, team=team, journal=journal
    )
    merge_slot(model, bank, 0)
    return losses


@torch.no_grad()
def merge_slot(model: BankedModel, bank: AdapterBank, slot: int) -> None:
    """W += scale * b a for every projection, computed in float32 and rounded once to the base's type."""
    for p in bank.projections:
        layer = model.model.get_submodule(p.name)
        assert isinstance(layer, BankedLinear)
        a_Sri, b_Sor = bank.factors(p.name)
        weight = layer.base.weight
        weight.copy_(weight.float() + bank.scale * (b_Sor[slot] @ a_Sri[slot]))


def unbanked(model: BankedModel) -> torch.nn.Module:
    """Take the banked layers out again, in place: the plain Hugging Face model, as it is saved."""
    for p in model.projections:
        parent, _, leaf = p.name.rpartition(".")
        setattr(model.model.get_submodule(parent), leaf, model.model.get_submodule(p.name).base)
    return model.model
