"""How many users fit into a pack: arithmetic before training (`perpcs.train.fitting` acts on it).

Memory of a step = base weights + users x (24 bytes x numbers of an adapter) + tokens of a pass x bytes per token.
24: factors, gradient, two moments, and two temporaries of the optimiser, all float32. Users therefore cost little
beside tokens, and tokens can be spread over passes: a pack is cut down only when its rows alone leave no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perpcs.errors import ConfigError
from perpcs.records import Projection
from perpcs.train.pack import Passes

ROW_BYTES = 24
USABLE = 0.9
"""Share of the device's memory that is planned with: the rest is for kernels' work space and fragments."""
FEWEST_ITEMS = 4
"""Items a pass should at least hold: below that the device idles, and fewer users are better than shorter passes."""


@dataclass(frozen=True)
class Shape:
    """What counts of a model. `width`: bytes per number of the frozen weights; `adapted`: layers that keep activations
    for the backward pass; `row`: numbers of one user's adapter."""

    parameters: int
    width: int
    hidden: int
    inner: int
    vocab: int
    adapted: int
    row: int

    @classmethod
    def of(cls, model: Any, projections: Sequence[Projection], *, rank: int) -> Shape:
        """The shape of a Hugging Face model with these projections adapted."""
        config = model.config
        weights = list(model.parameters())
        inner = getattr(config, "intermediate_size", None) or getattr(
            config, "ffn_dim", 4 * config.hidden_size
        )
        return cls(
            parameters=sum(w.numel() for w in weights),
            width=weights[0].element_size(),
            hidden=config.hidden_size,
            inner=inner,
            vocab=config.vocab_size,
            adapted=config.num_hidden_layers - min(p.layer for p in projections),
            row=sum(rank * (p.d_in + p.d_out) for p in projections),
        )

    @property
    def base(self) -> int:
        """Bytes of the frozen weights."""
        return self.parameters * self.width

    @property
    def layer_token(self) -> int:
        """Bytes that one layer keeps per token for the backward pass: the residual before each norm, the normed input,
        queries, keys and values (expanded to all heads), the attention's output twice; gate, its SiLU and the up
        projection. A 16-bit base norms in float32, which keeps two more copies of the residual."""
        upcast = 0 if self.width >= 4 else 2 * 4 * self.hidden
        return self.width * (8 * self.hidden + 3 * self.inner) + upcast

    def token(self, *, again: bool, label_share: float) -> float:
        """Bytes per token of a pass. label_share: label positions per token, whose logits are kept three times."""
        logits = label_share * self.vocab * (self.width + 3 * 4)
        if again:
            return self.adapted * self.width * self.hidden + 2 * self.layer_token + logits
        work = 2 * self.width * (self.inner + self.hidden)
        return self.adapted * self.layer_token + work + logits


@dataclass(frozen=True)
class Plan:
    """Users of a pack and how its steps are cut; `why` is one line for the log."""

    users: int
    passes: Passes
    why: str


def plan(
    shape: Shape, *, memory: int, users: int, batch: int, length: int, label: int, states: int = 0
) -> Plan:
    """The largest pack of at most `users` that fits into `memory` bytes with `batch` items of `length` tokens each, of
    which `label` are label tokens. states: bytes per user of kept lower-layer activations.

    Raises ConfigError when not even one user with one item fits.
    """
    free = int(memory * USABLE) - shape.base
    row = ROW_BYTES * shape.row + states
    share = (label + 1) / length
    for again in (False, True):
        token = shape.token(again=again, label_share=share)
        for items in (FEWEST_ITEMS, 1):
            fit = min(users, int((free - items * length * token) // row))
            if fit >= 1:
                return _plan(
                    shape, fit, free - fit * row, token=token, again=again, asked=(users, batch, length)
                )
    need = shape.base + row + length * shape.token(again=True, label_share=share)
    raise ConfigError(
        f"memory: {_gib(memory)} do not hold the base with one user and one item of {length} tokens "
        f"({_gib(need / USABLE)} are needed); lower prompt.max_length or lora.rank, or use a larger device"
    )


def _plan(
    shape: Shape, fit: int, room: int, *, token: float, again: bool, asked: tuple[int, int, int]
) -> Plan:
    users, batch, length = asked
    tokens, wanted = int(room // token), fit * batch * length
    passes = Passes(tokens=0 if tokens >= wanted else tokens, again=again)
    cut = "in one pass" if not passes.tokens else f"in passes of up to {tokens:,} tokens"
    why = (
        f"pack of {fit} of {users} users: base {_gib(shape.base)}, {_mib(ROW_BYTES * shape.row)} per user, "
        f"{_mib(token)} per token, {_gib(max(0, room))} for tokens; {wanted:,} tokens a step {cut}"
        + (", activations computed again" if again else "")
    )
    return Plan(fit, passes, why)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _mib(size: float) -> str:
    return f"{size / 2**20:.2f} MiB"
