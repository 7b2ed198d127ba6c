"""Prompt tuning and (IA)^3 through the PEFT library, as rows of a comparison."""

import pytest
import torch
from torch.nn import functional as F

from perpcs.config.schema import KindsConfig
from perpcs.train.kinds import KindModel

CONFIG = KindsConfig(steps=25, batch=4, prompt_lr=0.1, ia3_lr=0.1, virtual_tokens=4)
KINDS = ("prompt_tuning", "ia3")


@pytest.fixture(scope="module", params=KINDS)
def kind_model(request):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return KindModel(LlamaForCausalLM(shape).eval(), request.param, CONFIG, pad_id=0, seed=0)


def mean_loss(model, user):
    """One item at a time, nothing padded."""
    losses = []
    for e in user.examples:
        ids = torch.tensor([e.prompt + e.label])
        with torch.no_grad():
            logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        losses.append(F.cross_entropy(logits[-len(e.label) - 1 : -1], torch.tensor(e.label)))
    return float(torch.stack(losses).mean())


def test_training_lowers_the_loss_and_leaves_the_base_alone(kind_model, make_user):
    user = make_user("u", items=6)
    frozen = {n: p.clone() for n, p in kind_model.model.named_parameters() if not p.requires_grad}
    state, _ = kind_model.train(user)
    after = mean_loss(kind_model, user)
    kind_model.load(kind_model._start)
    assert after < mean_loss(kind_model, user) - 0.05
    assert all(
        torch.equal(p, frozen[n]) for n, p in kind_model.model.named_parameters() if not p.requires_grad
    )
    expected = 4 * 32 if kind_model.kind == "prompt_tuning" else 2 * (16 + 16 + 64)
    assert sum(value.numel() for value in state.values()) == expected


def test_a_user_gets_the_same_whoever_came_before(kind_model, make_user):
    first, second = make_user("a", items=5), make_user("b", items=7)
    alone, _ = kind_model.train(second)
    kind_model.train(first)
    again, _ = kind_model.train(second)
    assert all(torch.equal(alone[n], again[n]) for n in alone)


def test_answers_and_choices_are_those_of_one_prompt_at_a_time(kind_model, make_user):
    user = make_user("u", items=8)
    state, _ = kind_model.train(user)
    prompts, choices = [e.prompt for e in user.examples], [(5, 9, 2), (5, 2), (40, 2)]
    together = kind_model.answer(prompts, max_new=4, eos_id=2)
    chosen = kind_model.choose(prompts, choices)
    kind_model.load(kind_model._start)
    assert together != kind_model.answer(prompts, max_new=4, eos_id=2), "the parameters matter"
    kind_model.load(state)
    for prompt, tokens, best in zip(prompts, together, chosen, strict=True):
        ids, made = list(prompt), []
        for _ in range(4):
            row = torch.tensor([ids])
            with torch.no_grad():
                token = int(
                    kind_model.model(input_ids=row, attention_mask=torch.ones_like(row))
                    .logits[0, -1]
                    .argmax()
                )
            if token == 2:
                break
            ids.append(token)
            made.append(token)
        assert tokens == made
        scores = [score(kind_model, prompt, choice) for choice in choices]
        assert scores[best] == pytest.approx(max(scores), abs=1e-4)


def test_losses_of_labels_are_means_over_their_tokens(kind_model, make_user):
    user = make_user("u", items=4)
    kind_model.load(kind_model.train(user)[0])
    expected = [-score(kind_model, e.prompt, e.label) / len(e.label) for e in user.examples]
    assert kind_model.label_losses(user.examples) == pytest.approx(expected, abs=1e-4)


def score(model, prompt, choice):
    ids = torch.tensor([prompt + choice])
    with torch.no_grad():
        logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
    return sum(float(logits[i - len(choice) - 1, token]) for i, token in enumerate(choice))


def test_parameters_of_another_shape_are_refused(kind_model):
    state = {n: torch.zeros(3) for n in kind_model.state()}
    with pytest.raises(ValueError, match="are not those of"):
        kind_model.load(state)
