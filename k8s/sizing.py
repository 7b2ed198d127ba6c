"""What a population costs: `python -m k8s.sizing [--users N --sharers N …]`, or the table of docs/operations.md.

Bytes are those of benchmarks/results/pool_bytes.json. GPU time is arithmetic: 2 floating-point operations per
parameter and token forward, 2 more to carry gradients back through the frozen base, at a sustained rate that you give.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

MEASURED = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


@dataclass(frozen=True)
class Model:
    """A base model with square adapted projections (q, k, v, o without grouped heads)."""

    name: str
    parameters: float
    layers: int
    hidden: int

    def adapter_numbers(self, rank: int) -> int:
        """Of A and B of all four projections of all layers."""
        return self.layers * 4 * rank * 2 * self.hidden


LLAMA_7B = Model("7B", 6.74e9, 32, 4096)
LLAMA_13B = Model("13B", 13.0e9, 40, 5120)


@dataclass(frozen=True)
class Plan:
    """A population and how it is trained; the defaults are the papers' steps and batch."""

    users: int
    sharers: int
    model: Model = LLAMA_7B
    rank: int = 8
    steps: int = 100
    gate_steps: int = 100
    batch: int = 6
    item_tokens: int = 256
    """Prompt and label of one history item."""
    history: int = 60
    """Items that a target is assembled from."""
    teraflops: float = 120.0
    """Sustained by one GPU in training; 120 is two fifths of an A100's bf16 peak. Not measured by us."""

    def train_hours(self, steps: int) -> float:
        """GPU hours of `steps` training steps for one user."""
        tokens = steps * self.batch * self.item_tokens
        return tokens * 4 * self.model.parameters / (self.teraflops * 1e12) / 3600

    @property
    def sharer_hours(self) -> float:
        """Adapters and gates of all sharers."""
        return self.sharers * self.train_hours(self.steps + self.gate_steps)

    @property
    def own_hours(self) -> float:
        """What OPPU trains: an adapter for every user."""
        return self.users * self.train_hours(self.steps)

    @property
    def assembly_hours(self) -> float:
        """One forward and one backward of every user's history (gradient key)."""
        tokens = self.users * self.history * self.item_tokens
        return tokens * 4 * self.model.parameters / (self.teraflops * 1e12) / 3600

    @property
    def pool_bytes(self) -> float:
        """Factors and keys in half precision, as stored."""
        found = json.loads((MEASURED / "pool_bytes.json").read_text())
        raw = 2 * self.model.adapter_numbers(self.rank)
        of_7b = found["float16"]["stored_bytes"] / found["float16"]["raw_factor_bytes"]
        return self.sharers * raw * of_7b

    @property
    def recipe_bytes(self) -> float:
        """Rows of the recipes' table; the number of projections is the model's."""
        found = json.loads((MEASURED / "pool_bytes.json").read_text())["recipes"]
        return self.users * found["table_bytes_per_target"] * self.model.layers / LLAMA_7B.layers

    @property
    def own_bytes(self) -> float:
        """OPPU's adapters in half precision."""
        return self.users * 2.0 * self.model.adapter_numbers(self.rank)


PLANS = (
    Plan(users=1_000, sharers=50),
    Plan(users=10_000, sharers=200),
    Plan(users=100_000, sharers=1_000),
    Plan(users=1_000_000, sharers=1_000),
    Plan(users=1_000_000, sharers=10_000),
    Plan(users=1_000_000, sharers=1_000, model=LLAMA_13B),
)
HEAD = (
    "model",
    "users",
    "sharers",
    "pool",
    "recipes",
    "GPU-h sharers",
    "GPU-h assembly",
    "OPPU: bytes",
    "OPPU: GPU-h",
)


def size(count: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} KB"


def hours(value: float) -> str:
    """Two or three digits."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def table(plans: tuple[Plan, ...] = PLANS) -> str:
    """A Markdown table, a row per plan."""
    rows = [HEAD, (":--", *("--:",) * (len(HEAD) - 1))]
    for plan in plans:
        rows.append((
            plan.model.name, f"{plan.users:,}", f"{plan.sharers:,}", size(plan.pool_bytes), size(plan.recipe_bytes),
            hours(plan.sharer_hours), hours(plan.assembly_hours), size(plan.own_bytes), hours(plan.own_hours),
        ))  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m k8s.sizing", description=__doc__)
    numbers = ("users", "sharers", "rank", "steps", "gate_steps", "batch", "item_tokens", "history")
    for name in numbers:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--teraflops", type=float, help="that one GPU sustains (default 120)")
    parser.add_argument("--model", choices=("7B", "13B"), help="default 7B")
    given = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    if not given:
        sys.stdout.write(table())
        return
    model = LLAMA_13B if given.pop("model", "7B") == "13B" else LLAMA_7B
    sys.stdout.write(table((replace(Plan(users=100_000, sharers=1_000, model=model), **given),)))


if __name__ == "__main__":
    main()
