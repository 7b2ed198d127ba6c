"""Runs methods over target users: prompts, adapters into bank slots, decoding, text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perpcs.evaluation.likelihood import label_losses
from perpcs.generate.constrained import choose
from perpcs.generate.greedy import generate
from perpcs.lora.bank import Adapter, AdapterBank
from perpcs.model.base import Base
from perpcs.population.prompts import PLAIN, Context, Encoded, Prompter
from perpcs.records import Query, User

AdapterOf = Callable[[str], Adapter]
"""User id -> adapter."""


@dataclass(frozen=True)
class Answers:
    """One entry per (user, query), users in order."""

    user_ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    predictions: tuple[str, ...]
    golds: tuple[str, ...]


def asked(user: User, *, limit: int) -> tuple[Query, ...]:
    """The queries of a user that are evaluated: the first `limit`, or all for 0."""
    return user.queries[:limit] if limit else user.queries


def answers_of(users: Sequence[User], predictions: Sequence[str], *, max_queries: int) -> Answers:
    """The answers to what these users are asked, users and their queries in order."""
    pairs = [(user, query) for user in users for query in asked(user, limit=max_queries)]
    return Answers(
        user_ids=tuple(user.id for user, _ in pairs),
        query_ids=tuple(query.id for _, query in pairs),
        predictions=tuple(predictions),
        golds=tuple(query.gold for _, query in pairs),
    )


@dataclass(frozen=True)
class Ask:
    """One question to one slot of a bank."""

    slot: int
    user: User
    query: Query
    context: Context


def answer_all(
    base: Base,
    prompter: Prompter,
    asks: Sequence[Ask],
    *,
    bank: AdapterBank | None,
    batch: int,
    constrained: bool = False,
) -> list[str]:
    """Answers, one per question, each through its slot of the bank (the base alone when there is none): greedy text, or
    the task's most likely label where `constrained`."""
    prompts = [prompter.query(ask.user, ask.query, context=ask.context).prompt for ask in asks]
    slots = [ask.slot for ask in asks]
    if constrained:
        labels = prompter.task.labels
        choices = [prompter.label(label) for label in labels]
        return [labels[i] for i in choose(base.model, prompts, choices, bank=bank, slots=slots, batch=batch)]
    tokens = generate(
        base.model,
        prompts,
        bank=bank,
        slots=slots,
        max_new=prompter.cfg.max_label,
        eos_id=int(base.tokenizer.eos_token_id),
        batch=batch,
    )
    return [text.strip() for text in base.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def gold_examples(prompter: Prompter, asks: Sequence[Ask]) -> list[Encoded]:
    """The questions with what the user answered as label, cut to `prompt.max_label` like any label."""
    return [
        Encoded(prompter.query(a.user, a.query, context=a.context).prompt, prompter.label(a.query.gold))
        for a in asks
    ]


@dataclass(frozen=True)
class Asking:
    """How users are asked: what is shown of their past, whose adapters they get, and how much at once."""

    context: Context = PLAIN
    adapter_of: AdapterOf | None = None
    """None: the base for everybody."""
    scale: float = 1.0
    """Of the adapters: alpha / rank."""
    batch: int = 64
    """Sequences at once, users mixed."""
    max_queries: int = 0
    """Of each user, the first ones; 0: all."""

    def asks(self, users: Sequence[User]) -> list[Ask]:
        """Every question, users and their queries in order; the s-th user has slot s."""
        return [
            Ask(slot, user, query, self.context)
            for slot, user in enumerate(users)
            for query in asked(user, limit=self.max_queries)
        ]

    def bank(self, base: Base, users: Sequence[User]) -> AdapterBank | None:
        """The users' adapters, the s-th in slot s."""
        if self.adapter_of is None:
            return None
        adapters = [self.adapter_of(user.id) for user in users]
        model = base.model
        return AdapterBank.holding(model.projections, adapters, scale=self.scale, device=model.device)


def answer(
    base: Base, prompter: Prompter, users: Sequence[User], how: Asking, *, constrained: bool = False
) -> Answers:
    """Answers to the users' queries, each user with its own adapter."""
    asks, bank = how.asks(users), how.bank(base, users)
    texts = answer_all(base, prompter, asks, bank=bank, batch=how.batch, constrained=constrained)
    return answers_of(users, texts, max_queries=how.max_queries)


def gold_losses(base: Base, prompter: Prompter, users: Sequence[User], how: Asking) -> list[float]:
    """Nats per token of what the users really answered, in the order of `answer`: how unlikely it is to the method."""
    asks, bank = how.asks(users), how.bank(base, users)
    golds, slots = gold_examples(prompter, asks), [ask.slot for ask in asks]
    return [float(x) for x in label_losses(base.model, golds, bank=bank, slots=slots, batch=how.batch)]
