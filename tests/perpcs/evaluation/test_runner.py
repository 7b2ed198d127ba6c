"""Answers to queries, many users in one batch."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from perpcs.config.schema import PromptConfig, SyntheticConfig, TinyConfig
from perpcs.evaluation.likelihood import label_losses
from perpcs.evaluation.runner import Asking, answer, asked, gold_losses
from perpcs.lora.bank import AdapterBank
from perpcs.model.base import banked
from perpcs.model.tiny import new_llama, train_tokenizer
from perpcs.population.prompts import Context, Encoded, Prompter
from perpcs.population.synthetic import synthetic_population
from perpcs.population.tasks import get_task

TASK = get_task("LaMP-2M")


@pytest.fixture(scope="module")
def people():
    small = SyntheticConfig(archetypes=2, base_users=2, candidates=2, targets=4, history=6, queries=5)
    return synthetic_population(small, seed=0).targets


@pytest.fixture(scope="module")
def base(people):
    tokenizer = train_tokenizer([TASK.search_text(i) for u in people for i in u.history], vocab=400)
    llama = new_llama(TinyConfig(hidden=32, layers=2), tokenizer, max_length=64, seed=0)
    for weight in llama.parameters():
        weight.data *= 5 if weight.dim() > 1 else 1  # a new model says the same to everything
    return banked(llama, tokenizer, mark="", device="cpu", targets=("q_proj", "o_proj"))


@pytest.fixture(scope="module")
def ask(base):
    prompter = Prompter(TASK, base.tokenizer, PromptConfig(max_label=6))

    def ask(users, *, constrained=False, **how):
        return answer(base, prompter, users, Asking(scale=2.0, **how), constrained=constrained)

    return ask


@pytest.fixture(scope="module")
def adapter_of(base, people):
    """A strong random adapter for each; ranks differ, as those of merged pieces do."""
    bank = AdapterBank(base.model.projections, len(people), rank=6, scale=1.0)
    draw = torch.Generator().manual_seed(0)
    bank.parameters.flat += 0.3 * torch.randn(bank.parameters.flat.shape, generator=draw)
    made = {user.id: bank.adapter(slot) for slot, user in enumerate(people)}
    first = people[0].id
    made[first] = {name: (a[:2], b[:, :2]) for name, (a, b) in made[first].items()}
    return made.__getitem__


def of(answers, user):
    return [p for u, p in zip(answers.user_ids, answers.predictions, strict=True) if u == user.id]


@pytest.mark.parametrize("batch", [3, 64])
def test_answers_do_not_depend_on_who_shares_the_batch(ask, people, adapter_of, batch):
    together = ask(people, adapter_of=adapter_of, batch=batch)
    for user in people:
        assert of(ask([user], adapter_of=adapter_of), user) == of(together, user)
    backwards = ask(people[::-1], adapter_of=adapter_of, batch=batch)
    assert all(of(backwards, user) == of(together, user) for user in people)


def test_every_user_gets_the_own_adapter(ask, people, adapter_of):
    own, plain = ask(people, adapter_of=adapter_of), ask(people)
    swapped = ask(
        people, adapter_of=lambda u: adapter_of(people[1].id if u == people[2].id else people[2].id)
    )
    assert all(of(own, user) != of(plain, user) for user in people)
    assert of(own, people[1]) != of(swapped, people[1])


def test_entries_are_users_in_order_with_their_queries_and_golds(ask, people):
    found = ask(people)
    pairs = [(u.id, q.id, q.gold) for u in people for q in u.queries]
    assert list(zip(found.user_ids, found.query_ids, found.golds, strict=True)) == pairs
    assert all(text == text.strip() for text in found.predictions)


def test_at_most_so_many_queries_each_the_first_ones(ask, people):
    few = ask(people, max_queries=2)
    assert list(few.query_ids) == [q.id for u in people for q in u.queries[:2]]
    assert [of(few, u) for u in people] == [of(ask(people), u)[:2] for u in people]
    assert asked(people[0], limit=0) == people[0].queries


def test_what_is_shown_reaches_the_model(ask, people):
    assert ask(people, context=Context(retrieve=2)).predictions != ask(people).predictions


def test_constrained_answers_are_labels_of_the_task(ask, people, adapter_of):
    found, free = ask(people, adapter_of=adapter_of, constrained=True), ask(people, adapter_of=adapter_of)
    assert set(found.predictions) <= set(TASK.labels) and not set(free.predictions) <= set(TASK.labels)
    assert (found.user_ids, found.query_ids) == (free.user_ids, free.query_ids)


def test_the_golds_losses_are_those_of_one_sequence_at_a_time_in_plain_weights(base, people, adapter_of):
    """W + 2 b a written into a copy of the model, each question alone and without padding."""
    prompter, expected = Prompter(TASK, base.tokenizer, PromptConfig(max_label=6)), []
    own = Asking(adapter_of=adapter_of, scale=2.0, batch=3)
    found = gold_losses(base, prompter, people, own)
    for user in people:
        plain = copy.deepcopy(base.model.model)
        for name, (a, b) in adapter_of(user.id).items():
            plain.get_submodule(name).base.weight.data += 2.0 * b @ a
        for query in user.queries:
            prompt, label = prompter.query(user, query).prompt, prompter.label(query.gold)
            logits = plain(input_ids=torch.tensor([prompt + label])).logits[0, len(prompt) - 1 : -1]
            expected.append(float(F.cross_entropy(logits, torch.tensor(label))))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    few = gold_losses(base, prompter, people, replace(own, batch=64, max_queries=2))
    assert len(found) == 20 and len(few) == 8
    np.testing.assert_allclose(few[:2], expected[:2], rtol=1e-4)


def test_nothing_has_no_losses_and_an_empty_label_is_refused(base):
    assert label_losses(base.model, [], bank=None, slots=[], batch=4).tolist() == []
    with pytest.raises(ValueError, match="without label tokens"):
        label_losses(base.model, [Encoded((3, 4), ())], bank=None, slots=[0], batch=4)
