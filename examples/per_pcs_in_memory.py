"""Per-Pcs end to end in memory, on one page: no Ray, no Lance, no FAISS. Run: python examples/per_pcs_in_memory.py

A synthetic population of movie taggers whose preferences are known; a tiny Llama trained on the spot; LoRA adapters,
gates and keys for a few sharers; an assembled adapter for users who were never trained; the accuracy of each way.
`--small` makes everything smaller, to see it run in seconds (the scores then mean little).
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch

from perpcs.assembly.autoregressive import Rule
from perpcs.assembly.merge import adapter_from_recipe
from perpcs.assembly.pieces import MemoryPieces
from perpcs.assembly.rules import gate_picks, gradient_picks, make_recipe, random_picks
from perpcs.config.schema import (
    AdaptConfig,
    LoraConfig,
    PromptConfig,
    SyntheticConfig,
    TinyConfig,
    TrainConfig,
)
from perpcs.evaluation.runner import Asking, answer
from perpcs.keys.history import BaseEncoder
from perpcs.model.adapt import adapt
from perpcs.model.base import Base, banked, fingerprint
from perpcs.model.tiny import new_llama, pretrain, train_tokenizer
from perpcs.population.prompts import Prompter
from perpcs.population.synthetic import synthetic_population
from perpcs.population.tasks import get_task
from perpcs.records import PoolSpec, SharerAdapter, User
from perpcs.train.pack import UserData
from perpcs.train.sharers import train_own, train_sharers

SEED = 0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
log = logging.getLogger("example")


def make_base(users: tuple[User, ...], tiny: TinyConfig, steps: int) -> tuple[Base, Prompter]:
    """1. Task adaptation: a tokenizer and a tiny Llama from base users' text, then one LoRA, merged and frozen."""
    task, prompts = get_task("LaMP-2M"), PromptConfig(max_length=48)
    pairs = [task.example(item) for user in users for item in user.history]
    texts = [f"{task.prompt(text, 'short', past=True)}\nanswer: {label}" for text, label in pairs]
    tokenizer = train_tokenizer(texts, vocab=tiny.vocab)
    prompter = Prompter(task, tokenizer, prompts)
    examples = [example for user in users for example in prompter.history(user)]
    model = new_llama(tiny, tokenizer, max_length=prompts.max_length, seed=SEED)
    pretrain(model, examples, tiny, seed=SEED, on_step=lambda step, loss: None)
    base = banked(model, tokenizer, mark="", device="cpu", targets=TARGETS)
    adapt(base.model, examples, AdaptConfig(steps=steps), seed=SEED)
    return Base(base.model, tokenizer, fingerprint(base.model.model, tokenizer)), prompter


def share(base: Base, prompter: Prompter, users: tuple[User, ...], train: TrainConfig) -> MemoryPieces:
    """2 to 4. Sharers' adapters, gates and keys, many users in one step; their pieces are the pool."""
    history_keys = BaseEncoder(base.model, prompter)(users)
    made: list[SharerAdapter] = []
    for start in range(0, len(users), train.pack):
        pack = slice(start, start + train.pack)
        gate = TrainConfig(steps=train.steps // 2, lr=1e-2, clip=1.0)
        made += train_sharers(
            base.model, data_of(prompter, users[pack]), LoraConfig(), train,
            gate=gate, sketch=32, history_keys=history_keys[pack], seed=SEED,
        )  # fmt: skip
    lora = LoraConfig()
    spec = PoolSpec(
        base.fingerprint, lora.rank, lora.alpha, base.model.projections, 32, True, history_keys.shape[1]
    )
    return MemoryPieces(spec, made)


def data_of(prompter: Prompter, users: tuple[User, ...]) -> list[UserData]:
    """The users' past items as token ids."""
    return [UserData(user.id, tuple(prompter.history(user))) for user in users]


def accuracy(base: Base, prompter: Prompter, users: tuple[User, ...], adapters: dict | None) -> float:
    """Share of the users' questions answered exactly as they did; every user in the batch has its own adapter."""
    adapter_of = None if adapters is None else adapters.__getitem__
    found = answer(base, prompter, users, Asking(adapter_of=adapter_of))
    return float(np.mean([p == g for p, g in zip(found.predictions, found.golds, strict=True)]))


def assembled(users: tuple[User, ...], picks: list, pieces: MemoryPieces, merge: str) -> dict:
    """6. From picks to recipes (about 150 bytes each here) to adapters."""
    recipes = [
        make_recipe(u.id, "example", p, pieces, merge=merge) for u, p in zip(users, picks, strict=True)
    ]
    return {recipe.user_id: adapter_from_recipe(recipe, pieces) for recipe in recipes}


def run(*, small: bool = False) -> dict[str, float]:
    """Accuracy by method."""
    sizes = {"base_users": 40, "candidates": 6, "targets": 4, "history": 30, "queries": 10} if small else {}
    tiny = TinyConfig(hidden=64, layers=2, steps=300, lr=3e-3) if small else TinyConfig()
    train = TrainConfig(steps=20 if small else 100, pack=12)
    people = synthetic_population(SyntheticConfig(**sizes), seed=SEED)
    base, prompter = make_base(people.base, tiny, steps=10 if small else 100)
    log.info("base model ready: %d numbers", sum(p.numel() for p in base.model.model.parameters()))
    pieces = share(base, prompter, people.candidates[:24], train)
    log.info("pool ready: %d sharers", len(pieces.ids))

    targets, data = people.targets, data_of(prompter, people.targets)
    gate = gate_picks(base.model, data, pieces, Rule(3, 1.0, "average"), batch_items=16, items_per_pass=256)
    whole = gradient_picks(base.model, data, pieces, Rule(3, 0.1, "concat"), whole_sharers=True)
    chance = random_picks([user.id for user in targets], pieces, top_k=3, seed=SEED)
    own = {
        made.user_id: {n: (torch.from_numpy(p.a), torch.from_numpy(p.b)) for n, p in made.pieces.items()}
        for made in train_own(base.model, data, LoraConfig(), train, seed=SEED)
    }
    ways = {
        "task-adapted base": None,
        "Per-Pcs (paper)": assembled(targets, gate, pieces, "average"),
        "gradient key, whole sharers": assembled(targets, whole, pieces, "concat"),
        "random pieces": assembled(targets, chance, pieces, "concat"),
        "OPPU (own LoRA)": own,
    }
    return {name: accuracy(base, prompter, targets, adapters) for name, adapters in ways.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--small", action="store_true", help="seconds instead of minutes; the scores then mean little"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, value in run(small=arguments.small).items():
        print(f"{name:30s} {value:.3f}")
