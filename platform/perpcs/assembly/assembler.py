"""Every rule by its name, over one base and one version of the pool: from users' histories to picks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from perpcs.assembly.autoregressive import Rule
from perpcs.assembly.fitted import fitted_picks
from perpcs.assembly.pieces import Pieces
from perpcs.assembly.rerank import candidate_losses, likelihood_weights, shortlist, trust, weighted_picks
from perpcs.assembly.rules import (
    Picks,
    gate_picks,
    history_queries,
    picks_of_queries,
    random_picks,
    retrieval_picks,
    uniform_picks,
)
from perpcs.config.schema import AssemblyConfig
from perpcs.errors import DataError
from perpcs.model.base import Base
from perpcs.model.encoder import make_encoder
from perpcs.population.prompts import Prompter
from perpcs.records import User
from perpcs.train.pack import UserData

FITTED = {
    "gradient_fitted": "gradient",
    "gradient_global_fitted": "gradient_global",
    "reranked_fitted": "reranked",
}
"""Rules that fit the weights of another rule's picks."""

KEEPS_ALL = ("reranked_fitted",)
"""Rules that keep the whole shortlist: a sharer who alone is no better than the base may still be a part of what fits."""

SETTINGS = {
    "uniform": (),
    "random": ("top_k",),
    "retrieval": (),
    "gate": ("top_k", "temperature"),
    "gate_batches": ("top_k", "temperature", "batch_items"),
    "gradient": ("top_k", "gradient_temperature"),
    "gradient_global": ("top_k", "gradient_temperature"),
    "reranked": ("top_k", "shortlist", "likelihood_temperature", "sure_items"),
    "reranked_fitted": ("shortlist", "likelihood_temperature", "sure_items"),
}
"""Which settings of `AssemblyConfig` a rule depends on, beside those of ALWAYS; a fitted one on `fit` and `fit_epochs` as
well, and where it is not named on those of the rule whose picks it starts from."""
ALWAYS = ("max_items", "sharers", "sharing_ratio")


def settings_of(rule: str, config: AssemblyConfig) -> dict[str, Any]:
    """The part of the settings that a rule's picks depend on: others may change without making them anew."""
    keys = (*ALWAYS, *(SETTINGS.get(rule) or SETTINGS[FITTED.get(rule, rule)]))
    found: dict[str, Any] = {key: getattr(config, key) for key in keys}
    if rule in FITTED:
        found |= {f"fit.{key}": value for key, value in asdict(config.fit).items() if key != "pack"}
        found["fit_epochs"] = config.fit_epochs
    return found


def pieces_chosen(rule: str, config: AssemblyConfig) -> int:
    """Most pieces per projection that a rule chooses; `gate_batches` from every batch."""
    if rule == "retrieval":
        return 1
    return config.shortlist if rule in KEEPS_ALL else config.top_k


def choosing(rule: str, config: AssemblyConfig, k: int) -> AssemblyConfig:
    """`config` under which a rule chooses at most k pieces per projection."""
    return replace(config, shortlist=k) if rule in KEEPS_ALL else replace(config, top_k=k)


class Assembler:
    """The rules by name. `config` sets top-k, temperatures and batching; `encoder` as in `select.encoder`."""

    def __init__(
        self,
        base: Base,
        prompter: Prompter,
        pieces: Pieces,
        *,
        config: AssemblyConfig,
        encoder: str = "base",
        seed: int = 0,
    ) -> None:
        self.base, self.prompter, self.pieces = base, prompter, pieces
        self.config, self.encoder, self.seed = config, encoder, seed

    def picks(self, rule: str, merge: str, users: Sequence[User]) -> list[Picks]:
        """Choose pieces for users. Raises DataError for a user without an item to assemble from."""
        a = self.config
        if rule == "uniform":
            return [uniform_picks(self.pieces)] * len(users)
        if rule == "random":
            return random_picks([u.id for u in users], self.pieces, top_k=a.top_k, seed=self.seed)
        if rule == "retrieval":
            return retrieval_picks(self._history_keys(users), self.pieces)
        data = [self._data(user) for user in users]
        if rule in FITTED:
            start = self._start(rule, merge, users, data)
            fitted = fitted_picks(
                self.base.model, data, start, self.pieces, a.fit, epochs=a.fit_epochs, seed=self.seed
            )
            return self._trusted(fitted, data, merge) if rule in KEEPS_ALL else fitted
        if rule == "reranked":
            return self._trusted(self._reranked(users, data, a.top_k), data, merge)
        if rule in ("gradient", "gradient_global"):
            how, queries = Rule(a.top_k, a.gradient_temperature, merge), self.gradient_queries(users)
            return picks_of_queries(queries, self.pieces, how, whole_sharers=rule == "gradient_global")
        how = Rule(a.top_k, a.temperature, merge)
        batch_items = {"gate": 0, "gate_batches": a.batch_items}[rule]
        return gate_picks(
            self.base.model, data, self.pieces, how, batch_items=batch_items, items_per_pass=a.items_per_pass
        )

    def _start(self, rule: str, merge: str, users: Sequence[User], data: Sequence[UserData]) -> list[Picks]:
        if rule in KEEPS_ALL:
            return self._reranked(users, data, pieces_chosen(rule, self.config))
        return self.picks(FITTED[rule], merge, users)

    def gradient_queries(self, users: Sequence[User]) -> dict[str, np.ndarray]:
        """By projection [U, m * m]; they depend on the users' items alone, so that many settings can share them."""
        data = [self._data(user) for user in users]
        return history_queries(
            self.base.model, data, self.pieces.spec, items_per_pass=self.config.items_per_pass
        )

    def _reranked(self, users: Sequence[User], data: Sequence[UserData], top_k: int) -> list[Picks]:
        a, model = self.config, self.base.model
        queries = self.gradient_queries(users)
        near = shortlist(queries, self._history_keys(users), self.pieces, a.shortlist)
        losses = candidate_losses(model, data, self.pieces, near, items_per_pass=a.items_per_pass)
        weights = likelihood_weights(
            np.stack([loss.mean(axis=1) for loss in losses]), temperature=a.likelihood_temperature
        )
        return weighted_picks(near, weights, self.pieces, top_k=top_k)

    def _trusted(self, picks: Sequence[Picks], data: Sequence[UserData], merge: str) -> list[Picks]:
        factors = [trust(len(user.examples), self.config.sure_items) for user in data]
        if merge == "average":  # its weights count twice, in A and in B
            factors = [factor**0.5 for factor in factors]
        return [
            (ordinals, codes, scale * factor)
            for (ordinals, codes, scale), factor in zip(picks, factors, strict=True)
        ]

    def _history_keys(self, users: Sequence[User]) -> np.ndarray:
        return make_encoder(self.encoder, self.base.model, self.prompter)(users)

    def _data(self, user: User) -> UserData:
        examples = tuple(self.prompter.history(user, max_items=self.config.max_items))
        if not examples:
            raise DataError(f"user {user.id}: no history item with an output to assemble from")
        return UserData(user.id, examples)
