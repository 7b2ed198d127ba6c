"""What training less costs in accuracy: only the upper layers, fewer steps, a start from the user's own assembly.

    python benchmarks/bench_layers.py [--full] [--threads N] [--seeds 0 1 2]

Claims: below the lowest adapted layer an item's states are computed once for all its visits, so fewer adapted layers
cost less; alone that costs accuracy, from the assembly it does not. The reference is a user's own adapter as it is
trained by default: every layer, from zero, 100 steps. Every seed has its own population, base, pool and targets.
Without --full a small version that only prints. Writes results/layers.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import world

from perpcs.assembly.autoregressive import Rule
from perpcs.assembly.merge import adapter_from_recipe
from perpcs.assembly.pieces import MemoryPieces
from perpcs.assembly.rules import gradient_picks, make_recipe
from perpcs.config.schema import LoraConfig, TrainConfig
from perpcs.evaluation.runner import Asking, answer
from perpcs.lora.bank import Adapter
from perpcs.lora.inject import BankedModel
from perpcs.model.adapt import unbanked
from perpcs.model.base import Base
from perpcs.records import PoolSpec, Population, SharerAdapter
from perpcs.train.data import UserData
from perpcs.train.host import keep_freed_memory
from perpcs.train.sharers import train_own, train_sharers

RULE, SHARERS, SKETCH = Rule(top_k=3, temperature=0.1, merge="svd"), 24, 32
DEPTH = 4
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """What is adapted; `lr` was chosen on seed 0 from 3e-3, 6e-3 and 12e-3."""

    layers: int
    mlp: bool = False
    lr: float = 3e-3

    @property
    def lora(self) -> LoraConfig:
        """Rank 8, as by default."""
        return LoraConfig(targets=world.TARGETS + (MLP if self.mlp else ()))


ALL, TWO, ONE = Shape(4), Shape(2, mlp=True, lr=6e-3), Shape(1, mlp=True, lr=6e-3)
ZERO: dict[Shape, tuple[int, ...]] = {
    ALL: (100, 50, 25, 10), Shape(3): (100,), Shape(2): (100,), Shape(1): (100,), TWO: (100,), ONE: (100,)
}  # fmt: skip
"""Steps from zero, by shape; the first of all is the reference."""
ASSEMBLY: dict[Shape, tuple[int, ...]] = {ALL: (0, 5, 10, 25, 50, 100), TWO: (0, 10, 25), ONE: (0, 10, 25)}
"""Steps from the assembly."""


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """(wall seconds, result)."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def trials(
    people: Population, plain: Any, base: Base, shape: Shape, *, zero: Sequence[int], warm: Sequence[int]
) -> list[dict[str, Any]]:
    """Cost and accuracy of the targets' own adapters in one shape, after so many steps from either start."""
    model = BankedModel(plain, shape.lora.targets, pad_id=base.model.pad_id, layers=shape.layers)
    some, rows = Base(model, base.tokenizer, base.fingerprint), []
    targets = world.training_data(some, people.targets)

    def row(start: str, steps: int, seconds: float, adapters: Mapping[str, Adapter]) -> dict[str, Any]:
        right = accuracy(some, people, adapters)
        return asdict(shape) | {"start": start, "steps": steps, "seconds": seconds, "accuracy": right}

    def trained(steps: int, start: Mapping[str, Adapter] | None) -> tuple[float, dict[str, Adapter]]:
        config = TrainConfig(steps=steps, lr=shape.lr)
        seconds, own = timed(lambda: train_own(model, targets, shape.lora, config, seed=0, start=start))
        return seconds, {record.user_id: factors(record) for record in own}

    rows += [row("zero", steps, *trained(steps, None)) for steps in zero]
    if warm:
        pool = make_pool(some, people, shape)
        assemble, assembled = timed(lambda: assemblies(some, targets, pool))
        for steps in warm:
            seconds, adapters = trained(steps, assembled) if steps else (0.0, assembled)
            rows.append(row("assembly", steps, assemble + seconds, adapters))
    unbanked(model)
    return rows


def make_pool(base: Base, people: Population, shape: Shape) -> MemoryPieces:
    """24 sharers' pieces in the shape; their training is not part of any row's cost."""
    sharers = world.training_data(base, people.candidates)[:SHARERS]
    no_keys = np.ones((len(sharers), 1), np.float32)
    records = train_sharers(
        base.model, sharers, shape.lora, TrainConfig(lr=shape.lr), gate=TrainConfig(steps=1), sketch=SKETCH,
        history_keys=no_keys, seed=0,
    )  # fmt: skip
    spec = PoolSpec(
        base.fingerprint, shape.lora.rank, shape.lora.alpha, base.model.projections, SKETCH, gates=True,
        history_dim=1,
    )  # fmt: skip
    return MemoryPieces(spec, records)


def assemblies(base: Base, targets: Sequence[UserData], pool: MemoryPieces) -> dict[str, Adapter]:
    """Every target's assembly: whole sharers by the gradient key, cut to rank 8."""
    picks = gradient_picks(base.model, targets, pool, RULE, whole_sharers=True)
    made = [
        make_recipe(u.user_id, "", p, pool, merge=RULE.merge) for u, p in zip(targets, picks, strict=True)
    ]
    return {recipe.user_id: adapter_from_recipe(recipe, pool) for recipe in made}


def factors(record: SharerAdapter) -> Adapter:
    """As the bank takes them."""
    return {name: (torch.from_numpy(p.a), torch.from_numpy(p.b)) for name, p in record.pieces.items()}


def accuracy(base: Base, people: Population, adapters: Mapping[str, Adapter]) -> float:
    """Share of the targets' queries answered with the gold label."""
    lora = LoraConfig()
    how = Asking(adapter_of=adapters.__getitem__, scale=lora.alpha / lora.rank, batch=128)
    got = answer(base, world.prompter_of(base), people.targets, how)
    return statistics.mean(a == b for a, b in zip(got.predictions, got.golds, strict=True))


def measure(seed: int, *, full: bool) -> list[dict[str, Any]]:
    """Every row on one seed's population."""
    people = world.population(seed=seed)
    base = world.tiny_base(people, seed=seed)
    plain, rows = unbanked(base.model), []
    for shape, zero in ZERO.items() if full else [(ONE, (5,))]:
        warm = ASSEMBLY.get(shape, ()) if full else (0, 2)
        rows += trials(people, plain, base, shape, zero=zero, warm=warm)
        print(f"seed {seed}: {shape} done", flush=True)
    return rows


def together(seeds: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Means over the seeds; costs and differences are against the same seed's reference, the first row."""
    out = []
    for same in zip(*seeds, strict=True):
        firsts = [rows[0] for rows in seeds]
        times = [first["seconds"] / r["seconds"] for first, r in zip(firsts, same, strict=True)]
        apart = [r["accuracy"] - first["accuracy"] for first, r in zip(firsts, same, strict=True)]
        out.append(
            same[0]
            | {
                "seconds": round(statistics.mean(r["seconds"] for r in same), 2),
                "times_reference": round(statistics.median(times), 2),
                "accuracy": round(statistics.mean(r["accuracy"] for r in same), 4),
                "accuracies": [round(r["accuracy"], 4) for r in same],
                "over_reference": round(statistics.mean(apart), 4),
            }
        )
    return out


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--full", action="store_true", help="all shapes and seeds; writes results/layers.json"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="with --full")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    load = round(os.getloadavg()[0], 2)
    rows = together([measure(seed, full=args.full) for seed in (args.seeds if args.full else [0])])
    for row in rows:
        what = f"{row['layers']} of {DEPTH} layers{' with MLP' if row['mlp'] else ''}, {row['start']}"
        print(
            f"{what:42} {row['steps']:4} steps {row['seconds']:6.2f} s {row['times_reference']:6.2f} x faster  "
            f"accuracy {row['accuracy']:.3f} ({row['over_reference']:+.3f})"
        )
    if args.full:
        sizes = {
            "targets": 16, "sharers": SHARERS, "rank": LoraConfig().rank, "depth": DEPTH, "seeds": args.seeds
        }  # fmt: skip
        world.write("layers", {"sizes": sizes, "load_average_at_start": load, "rows": rows})


if __name__ == "__main__":
    main()
