"""Items of a sharer that its adapter never sees, so that an audit has something to tell members from."""

from __future__ import annotations

from dataclasses import replace

from perpcs.records import Item, User
from perpcs.seeds import rng


def split_history(user: User, fraction: float, *, seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """(items to train on, items held out): a seeded random part of the known history, each in time order.

    At least one item is trained on; with a fraction of 0 all are.
    """
    items = user.known
    count = min(round(fraction * len(items)), max(len(items) - 1, 0))
    out = set(rng(seed, "holdout", user.id).permutation(len(items))[:count].tolist())
    kept = tuple(item for i, item in enumerate(items) if i not in out)
    return kept, tuple(items[i] for i in sorted(out))


def without_held_out(user: User, fraction: float, *, seed: int) -> User:
    """The user as the pool sees it."""
    return replace(user, history=split_history(user, fraction, seed=seed)[0]) if fraction else user
