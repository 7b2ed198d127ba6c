"""Floating point operations of a method, from the tokens that its `Cost` counts, and what its questions cost."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from jobs.readings import Facts
from perpcs.evaluation.cost import Load, backward_flops, forward_flops
from perpcs.evaluation.methods import Method
from perpcs.evaluation.results import Cost

GATED = ("gate", "gate_batches")
"""Rules whose pool needs trained gates."""


class Prices:
    """Operations per token are those of the targets' own histories, so that they hold for however many tokens."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def priced(self, cost: Cost, method: Method, *, adapted: bool) -> Cost:
        """The cost with its operations and the tokens of a question. adapted: a LoRA runs along and is trained."""
        adapter, load, size = self.facts.adapter if adapted else 0, self._load, self.facts.size
        return replace(
            cost,
            forward_flops=cost.forward_tokens * forward_flops(load, size, adapter=adapter) / load.tokens,
            backward_flops=cost.backward_tokens * backward_flops(load, size, adapter=adapter) / load.tokens,
            pool_flops=self._pool_flops(gates=method.rule in GATED) if cost.pool_bytes else 0.0,
            query_tokens=self._query_tokens(method),
        )

    @cached_property
    def _load(self) -> Load:
        return sum((reading.load for reading in self.facts.readings), Load())

    @cached_property
    def _visit_flops(self) -> float:
        """Forward and backward of one visit to an item of each sharer, all sharers together."""
        adapter, size = self.facts.adapter, self.facts.size
        return sum(
            (forward_flops(h, size, adapter=adapter) + backward_flops(h, size, adapter=adapter)) / h.examples
            for h in self.facts.sharers
            if h.examples
        )

    def _pool_flops(self, *, gates: bool) -> float:
        pool = self.facts.cfg.pool
        visits = pool.train.steps * pool.train.batch + (pool.gate.steps * pool.gate.batch if gates else 0)
        return visits * self._visit_flops

    def _query_tokens(self, method: Method) -> float:
        context = method.context(retrieve=self.facts.cfg.evaluate.retrieve)
        tokens = sum(reading.question_tokens[context] for reading in self.facts.readings)
        return tokens / sum(reading.questions for reading in self.facts.readings)
