"""Leaving out work that changes nothing, and recomputing what memory cannot hold.

resumed: layers below the lowest adapted one give the same states at every visit of an item, so they run once.
shortened: after the last layer's keys and values only the positions that predict a label matter.
checkpointed: keep the layers' inputs only, for the backward pass.

Works on any model whose transformer layers stand in one list and take their states as first argument: for the time of
a call the layers' `forward` is replaced on the instances, names and weights stay as they are.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perpcs.records import Projection

Forward = Callable[..., Any]
_DENSE = ("eager", "sdpa")
"""Kinds of attention whose masks are tensors with a row per query; others' masks cannot be cut to the last queries."""


class Layers:
    """The transformer layers of a model, split at the lowest adapted one."""

    def __init__(self, model: nn.Module, projections: Sequence[Projection]) -> None:
        self.first = min(p.layer for p in projections)
        path = re.split(r"\.\d+\.", projections[0].name, maxsplit=1)[0]
        self.all: list[Any] = list(model.get_submodule(path).children())
        self._tuples = False
        self._config = getattr(model, "config", None)

    @contextmanager
    def stopped(self, states: list[Tensor]) -> Iterator[None]:
        """Forwards inside run the layers below the lowest adapted one only, and put what that would see into `states`."""

        def catch(hidden: Tensor, *_: Any, **__: Any) -> Any:
            states.append(hidden)
            return self._like_a_layer(hidden)

        def first(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            self._tuples = isinstance(out, tuple)
            return out

        original = self.all[0].forward
        changes: dict[int, Forward] = {0: first} if self.first else {}
        changes |= dict.fromkeys(range(self.first + 1, len(self.all)), self._pass_on)
        with self._replaced(changes | {self.first: catch}):
            yield

    @contextmanager
    def resumed(self, states: Tensor) -> Iterator[None]:
        """Forwards inside skip the layers below the lowest adapted one, which sees `states` [N, T, d]."""
        original = self.all[self.first].forward

        def resume(_: Tensor, *args: Any, **kwargs: Any) -> Any:
            return original(states, *args, **kwargs)

        with self._replaced(dict.fromkeys(range(self.first), self._pass_on) | {self.first: resume}):
            yield

    @contextmanager
    def shortened(self, keep: int) -> Iterator[None]:
        """Forwards inside give states of the last `keep` positions only: the last layer takes keys and values from all
        positions, and does everything else (queries, output, MLP) for those that are kept."""
        original = self.all[-1].forward
        names = inspect.signature(original).parameters
        name = next((n for n in ("past_key_values", "layer_past") if n in names), None)

        def last(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if name is None or args or hidden.shape[1] <= keep or self._attention() not in _DENSE:
                return original(hidden, *args, **kwargs)
            caught = _Catch()
            try:
                return original(
                    hidden, **{**kwargs, name: caught}
                )  # a layer without a cache: nothing was caught
            except _Caught:
                pass
            rest = {n: _last_positions(v, hidden.shape[1], keep) for n, v in kwargs.items()}
            # Without a mask SDPA takes the first key to belong to the first query: not so when only the last ones ask.
            if rest.get("attention_mask") is None and self._attention() == "sdpa":
                rest["attention_mask"] = _causal(hidden, keep)
            return original(hidden[:, -keep:], **{**rest, name: _Replay(caught)})

        with self._replaced({len(self.all) - 1: last}):
            yield

    def _attention(self) -> str:
        return getattr(self._config, "_attn_implementation", None) or "eager"

    @contextmanager
    def checkpointed(self, keep: Callable[[Forward], Forward]) -> Iterator[None]:
        """Forwards inside keep only the layers' inputs and compute the rest again in the backward pass; `keep(f)` gives
        f what it needs to run again after the call is over."""

        def recomputed(layer: Forward) -> Forward:
            return lambda *args, **kwargs: checkpoint(keep(layer), *args, use_reentrant=False, **kwargs)

        with self._replaced({i: recomputed(self.all[i].forward) for i in range(self.first, len(self.all))}):
            yield

    def _pass_on(self, hidden: Tensor, *_: Any, **__: Any) -> Any:
        return self._like_a_layer(hidden)

    def _like_a_layer(self, hidden: Tensor) -> Any:
        return (hidden,) if self._tuples else hidden

    @contextmanager
    def _replaced(self, changes: dict[int, Forward]) -> Iterator[None]:
        before = {i: self.all[i].__dict__.get("forward") for i in changes}
        try:
            for i, forward in changes.items():
                self.all[i].forward = forward
            yield
        finally:
            for i, forward in before.items():
                if forward is None:
                    del self.all[i].forward
                else:
                    self.all[i].forward = forward


class _Caught(Exception):
    """Keys and values are known: the rest of the layer need not run."""


class _Catch:
    """Stands in for a layer's cache and stops the layer once its keys and values are computed."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Any:
        self.pair = keys, values
        raise _Caught

    def get_seq_length(self, *_: Any) -> int:
        return 0


class _Replay:
    """Stands in for a layer's cache and gives what was caught."""

    def __init__(self, caught: _Catch) -> None:
        self.pair = caught.pair

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.pair

    def get_seq_length(self, *_: Any) -> int:
        return 0


def _last_positions(value: Any, length: int, keep: int) -> Any:
    """What belongs to the last `keep` of `length` positions: masks [N, 1, T, T], positions [N, T], their embeddings."""
    if isinstance(value, tuple):
        return tuple(_last_positions(v, length, keep) for v in value)
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    if value.dim() == 4 and value.shape[2] == length:
        return value[:, :, -keep:]
    return value[:, -keep:] if value.dim() < 4 and value.shape[1] == length else value


def _causal(hidden_NTd: Tensor, keep: int) -> Tensor:
    """[1, 1, keep, T] bool: the mask of the last positions of sequences without padding."""
    length = hidden_NTd.shape[1]
    place = torch.arange(length, device=hidden_NTd.device)
    return (place <= place[-keep:, None]).view(1, 1, keep, length)
