"""Floating point operations of a method, from the tokens that its `Cost` counts, and what its questions cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import mean

from perpcs.config import ExperimentConfig
from perpcs.evaluation.cost import adapter_parameters, backward_flops, forward_flops, tokens_of
from perpcs.evaluation.methods import Method
from perpcs.evaluation.results import Cost
from perpcs.evaluation.runner import asked
from perpcs.model.base import Base
from perpcs.model.size import model_size
from perpcs.population.prompts import Encoded, Prompter
from perpcs.records import User

GATED = ("gate", "gate_batches")
"""Rules whose pool needs trained gates."""


class Prices:
    """Operations per token are those of the targets' own histories, so that they hold for however many tokens."""

    def __init__(
        self,
        cfg: ExperimentConfig,
        base: Base,
        prompter: Prompter,
        users: Sequence[User],
        *,
        sharers: Callable[[], Sequence[User]],
    ) -> None:
        self.cfg, self.prompter, self.users = cfg, prompter, users
        self._sharers = sharers
        self.size = model_size(base.model.model)
        self.adapter = adapter_parameters(base.model.projections, cfg.lora.rank)

    def priced(self, cost: Cost, method: Method, *, adapted: bool) -> Cost:
        """The cost with its operations and the tokens of a question. adapted: a LoRA runs along and is trained."""
        adapter = self.adapter if adapted else 0
        tokens = tokens_of(self._examples)
        return replace(
            cost,
            forward_flops=cost.forward_tokens * forward_flops(self._examples, self.size, adapter=adapter) / tokens,
            backward_flops=cost.backward_tokens * backward_flops(self._examples, self.size, adapter=adapter) / tokens,
            pool_flops=self._pool_flops(gates=method.rule in GATED) if cost.pool_bytes else 0.0,
            query_tokens=self._query_tokens(method),
        )  # fmt: skip

    @cached_property
    def _examples(self) -> list[Encoded]:
        return [example for user in self.users for example in self.prompter.history(user)]

    @cached_property
    def _visit_flops(self) -> float:
        """Forward and backward of one visit to an item of each sharer, all sharers together."""
        adapter = self.adapter
        histories = [self.prompter.history(user) for user in self._sharers()]
        return sum(
            (forward_flops(h, self.size, adapter=adapter) + backward_flops(h, self.size, adapter=adapter))
            / len(h)
            for h in histories
            if h
        )

    def _pool_flops(self, *, gates: bool) -> float:
        pool = self.cfg.pool
        visits = pool.train.steps * pool.train.batch + (pool.gate.steps * pool.gate.batch if gates else 0)
        return visits * self._visit_flops

    def _query_tokens(self, method: Method) -> float:
        context = method.context(retrieve=self.cfg.evaluate.retrieve)
        limit = self.cfg.evaluate.max_queries
        return mean(
            len(self.prompter.query(user, query, context=context).prompt)
            for user in self.users
            for query in asked(user, limit=limit)
        )
