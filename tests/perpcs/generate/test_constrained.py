"""The most likely choice, against scoring every continuation on its own."""

import pytest
import torch

from perpcs.generate.constrained import choose
from perpcs.lora.bank import AdapterBank
from perpcs.lora.kernel import Slots
from perpcs.lora.sources import BankSource
from perpcs.population.batches import collate
from perpcs.population.prompts import Encoded

CHOICES = [(5, 9, 2), (5, 2), (40, 2), (17, 18, 19, 2), (60, 61, 2)]


@pytest.fixture(scope="module")
def bank(banked):
    bank = AdapterBank(banked.projections, 3, rank=4, scale=1.0)
    draw = torch.Generator().manual_seed(0)
    bank.parameters.flat += 0.4 * torch.randn(bank.parameters.flat.shape, generator=draw)
    return bank


def by_hand(model, prompt, choices, source):
    """Each continuation in a forward of its own."""
    scores = []
    for choice in choices:
        batch = collate([Encoded(prompt, choice)], pad_id=0)
        with torch.no_grad():
            logits = model.label_logits(batch, source=source)[0].log_softmax(-1)
        scores.append(sum(float(logits[i, token]) for i, token in enumerate(choice)))
    return scores


@pytest.mark.parametrize("batch", [1, 12, 64])
@pytest.mark.parametrize("choices", [CHOICES, [(7,), (8,), (9,)]])
def test_the_choice_with_the_highest_likelihood_under_each_rows_adapter(
    banked, bank, make_user, batch, choices
):
    prompts = [e.prompt for e in make_user("u", items=9, seed=2).examples]
    slots = [j % 3 for j in range(len(prompts))]
    for used in (bank, None):
        got = choose(banked, prompts, choices, bank=used, slots=slots, batch=batch)
        for j, prompt in enumerate(prompts):
            source = None if used is None else BankSource(bank, Slots(torch.tensor([slots[j]])))
            scores = by_hand(banked, prompt, choices, source)
            assert scores[got[j]] == pytest.approx(max(scores), abs=1e-4), (j, got[j])


def test_adapters_change_what_is_chosen(banked, bank, make_user):
    prompts = [e.prompt for e in make_user("u", items=20, seed=2).examples]
    plain, adapted = (choose(banked, prompts, CHOICES, bank=b, slots=[0] * 20) for b in (None, bank))
    assert plain != adapted
