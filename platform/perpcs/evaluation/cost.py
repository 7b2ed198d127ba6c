"""What a method costs: stored bytes and floating point operations by arithmetic from the shapes, tokens by counting.

Bytes are of the numbers themselves, without file overhead. Operations count a multiplication and an addition as two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from perpcs.population.prompts import Encoded
from perpcs.records import PoolSpec, Projection, User

FLOAT_BYTES = 4


@dataclass(frozen=True)
class ModelSize:
    """What one token costs in the frozen base."""

    linear: int
    """Parameters of the linear layers inside the transformer; every token meets all of them."""
    head: int
    """Parameters of the output layer; only positions that predict a label token meet it."""
    attention: int
    """Layers times width of all heads: numbers that a token compares with every token before it."""


@dataclass(frozen=True)
class Load:
    """What the cost of examples follows from, in whole numbers: sums over parts are those of the whole."""

    examples: int = 0
    tokens: int = 0
    """Without padding, prompts and labels."""
    labels: int = 0
    """Tokens that are label."""
    squares: int = 0
    """Sum over examples of their squared number of tokens."""

    @classmethod
    def of(cls, examples: Sequence[Encoded]) -> Load:
        """Count."""
        lengths = [len(e.prompt) + len(e.label) for e in examples]
        labels = sum(len(e.label) for e in examples)
        return cls(len(lengths), sum(lengths), labels, sum(n * n for n in lengths))

    def __add__(self, other: Load) -> Load:
        return Load(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def forward_flops(load: Load, size: ModelSize, *, adapter: float = 0.0) -> float:
    """One forward of each example, without padding. adapter: parameters of the LoRA that runs along.

    A prompt and label of n tokens, l of them label: 2 n (linear + adapter) + 2 l head + 2 n^2 attention, the last for
    scores and mixing over the half of all pairs that a causal model looks at.
    """
    return (
        2.0 * load.tokens * (size.linear + adapter)
        + 2.0 * load.labels * size.head
        + 2.0 * load.squares * size.attention
    )


def backward_flops(load: Load, size: ModelSize, *, adapter: float = 0.0) -> float:
    """The backward of `forward_flops`: gradients of the inputs only, as the base is frozen, so as much again; a LoRA
    needs those of inputs and weights, twice its forward."""
    return forward_flops(load, size, adapter=2.0 * adapter)


def adapter_parameters(projections: Sequence[Projection], rank: int) -> int:
    """Numbers in one LoRA: r (d_in + d_out) per projection."""
    return sum(rank * (p.d_in + p.d_out) for p in projections)


def pool_bytes(spec: PoolSpec, sharers: int, *, key: str = "", number_bytes: int = FLOAT_BYTES) -> int:
    """Factors of all pieces, and the keys that a rule searches: `gate`, `gradient`, `history` or none."""
    factors = adapter_parameters(spec.projections, spec.rank)
    keys = {
        "": 0,
        "gate": sum(p.d_in for p in spec.projections),
        "gradient": spec.sketch**2 * len(spec.projections),
        "history": spec.history_dim,
    }[key]
    return sharers * (factors * number_bytes + keys * FLOAT_BYTES)


def total(users: float, *, each: float, shared: float = 0.0) -> float:
    """What `users` users cost together: what is there once, and what each adds."""
    return shared + users * each


def break_even(*, shared: float, each: float, other: float) -> int | None:
    """The least number of users from which shared + each n is below other n; None when it never is."""
    saved = other - each
    return None if saved <= 0 else int(shared // saved) + 1


def history_bytes(user: User) -> int:
    """UTF-8 bytes of a history's texts: what a method that shows history has to keep."""
    return sum(len(value.encode()) for item in user.known for _, value in item.fields)
