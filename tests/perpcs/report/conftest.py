"""Made-up results with every kind of row, and a user whose id is an attack."""

import numpy as np
import pytest

from perpcs.evaluation.comparisons import SummaryOptions
from perpcs.evaluation.results import Choices, Cost, Experiment, MethodOutput
from perpcs.evaluation.summary import build_results

EVIL = "<script>alert(1)</script>$x_$"
METHODS = {
    "base": ("base model", "method", 0.21, Cost(0, 0.0, 0, 0.0)),
    "adapted": ("task-adapted base", "method", 0.54, Cost(0, 0.0, 0, 0.0)),
    "rag": ("RAG", "method", 0.58, Cost(0, 0.0, 0, 0.01)),
    "oppu": ("OPPU (own LoRA)", "method", 0.79, Cost(40_960, 163_840.0, 0, 1.1, 9000, 9000)),
    "peft_retrieval": ("PEFT retrieval", "method", 0.74, Cost(0, 2.0, 3_932_160, 0.02, 900)),
    "per_pcs": ("Per-Pcs (paper)", "method", 0.47, Cost(0, 576.0, 3_932_160, 0.3, 2700)),
    "gradient": ("gradient key", "ours", 0.80, Cost(0, 144.0, 3_932_160, 0.1, 900, 900)),
    "gradient_global": (
        "gradient key, whole sharers",
        "ours",
        0.82,
        Cost(0, 144.0, 3_932_160, 0.1, 900, 900),
    ),
    "other_oppu": ("another user's LoRA", "control", 0.44, Cost(40_960, 163_840.0, 0, 1.1, 9000, 9000)),
    "other_assembly": ("another user's assembly", "control", 0.45, Cost(0, 144.0, 3_932_160, 0.1, 900, 900)),
    "random_pieces": ("random pieces", "control", 0.41, Cost(0, 144.0, 3_932_160, 0.0)),
}


def answers(method, rate, cost, *, users, seed=0, queries=25, likelihood=False):
    rng = np.random.default_rng([seed, *method.encode()])
    skill = np.clip(rng.normal(rate, 0.06, len(users)), 0, 1)
    golds = [f"tag {(u + q) % 5}" for u in range(len(users)) for q in range(queries)]
    right = rng.random(len(golds)) < np.repeat(skill, queries)
    return MethodOutput(
        method,
        seed,
        tuple(user for user in users for _ in range(queries)),
        tuple(f"{user}-{q}" for user in users for q in range(queries)),
        tuple(gold if ok else "tag 0" for gold, ok in zip(golds, right, strict=True)),
        tuple(golds),
        cost,
        losses=tuple((2 - skill.repeat(queries) + rng.random(len(golds))).tolist()) if likelihood else (),
    )


def made_up(
    *, name="quickstart", seed=0, users=16, task="LaMP-2M", shift=0.0, prefix="target", likelihood=False
):
    rng = np.random.default_rng(seed)
    ids = (EVIL, *(f"{prefix}-{i:02}" for i in range(1, users)))
    kind, other = rng.integers(0, 4, users), rng.integers(0, 4, 24)
    truth = np.clip((kind[:, None] == other) * 0.8 + rng.normal(0, 0.12, (users, 24)), -1, 1)
    sharp = np.exp(8 * (truth + rng.normal(0, 0.15, truth.shape)))
    blunt = rng.random(truth.shape)
    weights = {
        key: tuple(map(tuple, (w / w.sum(axis=1, keepdims=True)).tolist()))
        for key, w in (("gradient", sharp), ("per_pcs", blunt), ("random_pieces", rng.random(truth.shape)))
    }
    return build_results(
        [
            answers(m, rate + shift, cost, users=ids, seed=seed, likelihood=likelihood)
            for m, (_, _, rate, cost) in METHODS.items()
        ],
        experiment=Experiment(
            name, task, seed, 60, 48, users, 24, "tiny", "5f1c09ab", 3, "c0ffee",
            f"python -m jobs.pipeline configs/quickstart.yaml seed={seed}",
            {"lora.rank": "8", "assembly.top_k": "3"},
        ),
        titles={m: (title, role) for m, (title, role, _, _) in METHODS.items()},
        choices=Choices(
            ids, tuple(f"sharer-{i:02}" for i in range(24)), weights, tuple(map(tuple, truth.tolist()))
        ),
        options=SummaryOptions(resamples=400, permutations=999),
    )  # fmt: skip


@pytest.fixture(scope="session")
def results():
    return made_up()


@pytest.fixture(scope="session")
def make():
    return made_up
