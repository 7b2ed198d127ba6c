"""Seconds per target for every rule of assembly, over one plain forward of the same history.

    python benchmarks/bench_assembly.py [--full] [--threads N]

Claims: with 1,000 sharers in a Lance pool searched by FAISS, the gate key costs little above the forward it rides on,
the gradient key little above a forward and a backward, and both far less than the papers' procedure (selection anew for
every batch of 16 items, every sharer's file read for every target). Contestants take turns, round after round; ratios
are medians of the rounds' own. Sharers are random numbers in the right shapes: what is chosen is of no interest here.
Without --full a small version that only prints.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import world
from assembly_rivals import assemble_as_published
from pool_world import sharer
from safetensors.numpy import save_file

from perpcs.assembly.autoregressive import Rule
from perpcs.assembly.rules import gate_picks, gradient_picks, passes
from perpcs.config.schema import AssemblyConfig, TinyConfig
from perpcs.lora.inject import BankedModel
from perpcs.model.adapt import unbanked
from perpcs.model.base import Base
from perpcs.model.tiny import new_llama
from perpcs.records import PoolSpec, Population
from perpcs.train.data import ItemTable, UserData, buckets
from perpcs.train.pack import AS_FITS
from storage.cache import PieceCache
from storage.lance_pieces import LancePieces
from storage.pool import Pool

RANK, TOP_K, SKETCH = 8, 3, 32
FULL = {
    128: {"sharers": 1000, "targets": 16, "rounds": 7},
    1024: {"sharers": 1000, "targets": 4, "rounds": 3},
}
PAPER_TARGETS = 2
"""Targets a round that the papers' procedure is timed on: it takes that long."""


def plain_forward(model: BankedModel, users: list[UserData], *, items: int, overhead: int) -> None:
    """The same items, in the same passes, through the model once: padded to the longest, or in buckets of like length
    where that saves more than `overhead` tokens of padding."""
    with torch.no_grad():
        for group in passes(users, items=items):
            table = ItemTable([e for u in group for e in u.examples], pad_id=model.pad_id)
            for rows in buckets(table.length, overhead=overhead):
                batch = table.batch(rows, device=model.device)
                model.run(batch.input_ids, batch.attention_mask, logits_to_keep=1)


def make_pool(folder: Path, spec: PoolSpec, sharers: int) -> tuple[Pool, list[Path]]:
    """A pool of random sharers, and the same as one safetensors file each."""
    rng = np.random.default_rng(0)
    pool = Pool.create(str(folder / "pool"), spec=spec)
    (folder / "files").mkdir()
    paths = []
    for start in range(0, sharers, 50):
        adapters = [sharer(f"u{i:06d}", spec, rng) for i in range(start, min(start + 50, sharers))]
        pool.commit(adapters)
        for adapter in adapters:
            parts = {f"{n}/{k}": getattr(p, k) for n, p in adapter.pieces.items() for k in ("a", "b", "gate")}
            paths.append(folder / "files" / f"{adapter.user_id}.safetensors")
            save_file(parts, paths[-1])
    return pool, paths


def contestants(
    base: Base, plain: Any, users: list[UserData], pieces: LancePieces, files: list[Path], items: int
) -> dict[str, Callable[[], int]]:
    """Name -> a run over targets that says how many it did."""
    model, gate, gradient = base.model, Rule(TOP_K, 1.0, "average"), Rule(TOP_K, 0.1, "concat")

    def forward(overhead: int) -> int:
        plain_forward(model, users, items=items, overhead=overhead)
        return len(users)

    def gates(batch_items: int) -> int:
        gate_picks(model, users, pieces, gate, batch_items=batch_items, items_per_pass=items)
        return len(users)

    def gradients(whole: bool) -> int:
        gradient_picks(model, users, pieces, gradient, whole_sharers=whole, items_per_pass=items)
        return len(users)

    def paper() -> int:
        for user in users[:PAPER_TARGETS]:
            assemble_as_published(plain, files, user.examples, top_k=TOP_K, scale=1.0)
        return PAPER_TARGETS

    return {
        "forward": lambda: forward(10**9),
        "forward_buckets": lambda: forward(AS_FITS.overhead),
        "gate": lambda: gates(0),
        "gate_batches": lambda: gates(16),
        "gradient": lambda: gradients(False),
        "gradient_global": lambda: gradients(True),
        "paper": paper,
    }


def contest(runs: dict[str, Callable[[], int]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds per target, and how often the plain forward fits into that; medians over the rounds after the first."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            done = run()
            if number:
                seconds[name].append((time.perf_counter() - start) / done)
    return {
        name: {
            "seconds_per_target": round(statistics.median(values), 5),
            "over_forward": round(_ratio(values, seconds["forward"]), 3),
            "paper_over_this": round(_ratio(seconds["paper"], values), 1),
        }
        for name, values in seconds.items()
    }


def _ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(o / u for o, u in zip(over, under, strict=True))


def floor(base: Base, users: list[UserData]) -> dict[str, float]:
    """FLOPs of one target's history through all layers once, and the rate of one large matrix product here."""
    weights = sum(
        w.numel() for n, w in base.model.model.named_parameters() if ".layers." in n and w.dim() == 2
    )
    tokens = statistics.mean(sum(len(e.prompt) + len(e.label) for e in u.examples) for u in users)
    rate = world.matmul_rate()
    return {
        "tokens_per_target": round(tokens),
        "forward_flops_per_target": round(2 * weights * tokens),
        "matmul_flops_per_second": round(rate),
        "forward_seconds_per_target": round(2 * weights * tokens / rate, 5),
    }


def bases(people: Population, hidden: int) -> tuple[Base, Any]:
    """The same weights with banked layers and plain: the tiny base, or one of its depth with random weights."""
    tiny = world.tiny_base(people)
    if hidden == tiny.model.model.config.hidden_size:
        return tiny, unbanked(world.tiny_base(people).model)
    config = TinyConfig(hidden=hidden, heads=hidden // 64, kv_heads=hidden // 128)
    plain = new_llama(config, tiny.tokenizer, max_length=64, seed=0)
    model = BankedModel(copy.deepcopy(plain), world.TARGETS, pad_id=tiny.model.pad_id)
    return Base(model, tiny.tokenizer, "random"), plain


def measure(
    folder: Path, hidden: int, *, sharers: int, targets: int, rounds: int, items: int
) -> dict[str, Any]:
    """One shape of results/assembly.json."""
    people = world.population(targets=targets)
    base, plain = bases(people, hidden)
    users = world.training_data(base, people.targets)
    spec = PoolSpec(base.fingerprint, RANK, float(RANK), base.model.projections, sketch=SKETCH, gates=True)
    pool, files = make_pool(folder, spec, sharers)
    pieces = LancePieces(pool.view(cache=PieceCache(1 << 30)), str(folder / "indexes"))
    runs = contestants(base, plain, users, pieces, files, items)
    return {
        "sizes": {
            "hidden": hidden, "layers": 4, "projections": len(spec.projections), "sharers": sharers, "targets": targets,
            "items_per_pass": items, "top_k": TOP_K, "rank": RANK, "sketch": SKETCH,
        },
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "floor": floor(base, users),
        "rules": contest(runs, rounds),
    }  # fmt: skip


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the recorded sizes; writes benchmarks/results/")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shapes = FULL if args.full else {128: {"sharers": 50, "targets": 4, "rounds": 1}}
    results = []
    for hidden, sizes in shapes.items():
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(Path(folder), hidden, items=AssemblyConfig().items_per_pass, **sizes))
        for name, row in results[-1]["rules"].items():
            print(f"hidden {hidden:5} {name:16} {1e3 * row['seconds_per_target']:8.1f} ms  {row['over_forward']:6.2f} x"
                  f" forward  {row['paper_over_this']:6.1f} x faster than the papers' procedure")  # fmt: skip
    if args.full:
        world.write("assembly", {"shapes": results})


if __name__ == "__main__":
    main()
