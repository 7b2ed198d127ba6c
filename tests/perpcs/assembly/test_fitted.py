"""Fitted mixing weights: the mixture layer against adapters made by hand, the fit against plain autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from perpcs.assembly.autoregressive import Rule
from perpcs.assembly.fitted import fit_steps, fitted_picks
from perpcs.assembly.likelihood import item_losses_of, mixture_of
from perpcs.assembly.rules import gradient_picks
from perpcs.config.schema import TrainConfig
from perpcs.population.batches import collate
from perpcs.train.pack import UserData, train_weights

FIT = TrainConfig(steps=15, batch=4, lr=0.05, warmup=1, weight_decay=0.0, clip=1.0, pack=2)
LOCAL = Rule(3, 0.1, "concat")


def test_losses_under_many_weightings_are_those_of_the_adapters_made_by_hand(
    banked, pieces, targets, losses_with
):
    picks = gradient_picks(banked, targets, pieces, LOCAL)
    ordinals = np.stack([o for o, _, _ in picks])
    codes = (
        np.random.default_rng(0).integers(-127, 128, (len(targets), 4, *ordinals.shape[1:])).astype(np.int8)
    )
    codes[:, 0] = 0
    mixture = mixture_of(pieces, ordinals, device=banked.device)
    for tokens in (0, 150):
        found = item_losses_of(banked, targets, mixture, codes / 127 * 1.5, tokens=tokens)
        for u, user in enumerate(targets):
            assert found[u].shape == (4, len(user.examples))
            for v in range(4):
                expected = losses_with(user, (ordinals[u], codes[u, v], 1.5) if v else None)
                np.testing.assert_allclose(found[u][v], expected, rtol=1e-4, atol=1e-4)


def test_one_step_of_the_fit_is_adamw_on_the_gradient_of_the_written_out_sum(
    banked, make_llama, pieces, targets
):
    """Weights as parameters of W + scale * sum w_j B_j A_j in a plain model, differentiated by autograd."""
    user = targets[0]
    once = replace(FIT, steps=1, batch=len(user.examples), clip=1e9)
    picks = gradient_picks(banked, [user], pieces, LOCAL)
    ordinals, start = picks[0][0], torch.from_numpy(picks[0][1] / np.float32(127))
    mixture = mixture_of(pieces, ordinals[None], device=banked.device)
    got, _ = train_weights(banked, mixture, start[None], [user], once, seed=0)

    names = [p.name for p in pieces.spec.projections]
    weights = {n: start[j].clone().requires_grad_(True) for j, n in enumerate(names)}
    scale, model = pieces.spec.alpha / pieces.spec.rank, make_llama()
    changed = {}
    for j, name in enumerate(names):
        a, b = (torch.from_numpy(x) for x in pieces.fetch({name: ordinals[j]})[name])
        delta = sum(weights[name][i] * b[i] @ a[i] for i in range(3))
        changed[f"{name}.weight"] = model.get_submodule(name).weight.detach() + scale * delta
    batch = collate(user.examples, pad_id=0)
    inputs = {
        "input_ids": batch.input_ids, "attention_mask": batch.attention_mask,
        "position_ids": (batch.attention_mask.cumsum(1) - 1).clamp(min=0),
    }  # fmt: skip
    logits = torch.func.functional_call(model, changed, kwargs=inputs).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()).backward()
    for j, name in enumerate(names):
        # Adam's first step goes by lr in the direction of each gradient's sign.
        moved = got[0, j] - start[j]
        clear = weights[name].grad.abs() > 1e-5
        torch.testing.assert_close(
            moved[clear], -FIT.lr * weights[name].grad.sign()[clear], rtol=2e-2, atol=1e-5
        )


@pytest.fixture
def fitted(banked, pieces, targets):
    start = gradient_picks(banked, targets, pieces, LOCAL)
    return start, fitted_picks(banked, targets, start, pieces, FIT, seed=0)


def test_fitting_lowers_the_loss_of_what_the_recipe_gives_back(targets, fitted, losses_with):
    for user, before, after in zip(targets, *fitted, strict=True):
        assert (before[0] == after[0]).all(), "the pieces stay"
        losses = [losses_with(user, p).mean() for p in (before, after)]
        assert losses[1] < losses[0]


def test_company_does_not_change_fitted_weights(banked, pieces, targets, fitted):
    start, together = fitted
    for u, user in enumerate(targets):
        alone = fitted_picks(banked, [user], [start[u]], pieces, FIT, seed=0)[0]
        np.testing.assert_allclose(alone[1] * alone[2], together[u][1] * together[u][2], atol=2e-2 * 127)


def test_no_item_is_visited_much_more_often_than_allowed():
    config = TrainConfig(steps=20, batch=12)
    assert [fit_steps(config, items, epochs=6) for items in (1, 2, 3, 10, 39, 60)] == [1, 1, 2, 5, 20, 20]
    assert fit_steps(config, 1, epochs=0) == 20


def test_a_short_history_makes_fewer_steps_beside_a_long_one(banked, pieces, targets):
    """In one pack: the short one ends as if it had been configured so, the long one as if it were alone."""
    short = replace(targets[0], examples=targets[0].examples[:2])
    users = [short, targets[1]]
    start = gradient_picks(banked, users, pieces, LOCAL)
    got = fitted_picks(banked, users, start, pieces, FIT, epochs=2, seed=0)
    for u, steps in ((0, 1), (1, fit_steps(FIT, len(targets[1].examples), epochs=2))):
        alone = fitted_picks(banked, [users[u]], [start[u]], pieces, replace(FIT, steps=steps), seed=0)[0]
        np.testing.assert_allclose(got[u][1] * got[u][2], alone[1] * alone[2], atol=2e-2 * 127)
    assert steps > 1, "or the two would not differ"


def test_decay_keeps_weights_near_where_they_started(banked, pieces, targets):
    start = gradient_picks(banked, targets, pieces, LOCAL)
    free, held = (
        fitted_picks(banked, targets, start, pieces, replace(FIT, weight_decay=d), seed=0)
        for d in (0.0, 15.0)
    )

    def moved(picks):
        return sum(np.abs(p[1] * p[2] - s[1] * s[2]).mean() for p, s in zip(picks, start, strict=True))

    assert moved(held) < 0.7 * moved(free)


def test_places_without_a_piece_stay_empty(banked, pieces, targets):
    ordinals = np.array([[3, -1]] * len(pieces.spec.projections))
    codes = np.array([[127, 0]] * len(pieces.spec.projections), np.int8)
    wide = (
        np.tile([0, 1, 2], (len(ordinals), 1)),
        np.tile(np.array([64, 32, 31], np.int8), (len(ordinals), 1)),
        1.0,
    )
    users = [UserData(u.user_id, u.examples) for u in targets[:2]]
    for fitted_one in fitted_picks(banked, users, [(ordinals, codes, 1.0), wide], pieces, FIT, seed=0)[:1]:
        assert (fitted_one[1][:, 1:] == 0).all() and (fitted_one[1][:, 0] != 0).all()


def test_what_lies_where_no_piece_is_has_no_part_in_the_fit(banked, pieces, targets):
    class Louder:
        """The same pool with another first sharer, whom the picks do not name."""

        def __getattr__(self, name):
            return getattr(pieces, name)

        def fetch(self, wanted):
            found = pieces.fetch(wanted)
            for name, (_, b) in found.items():
                b[wanted[name] == 0] *= 50
            return found

    ordinals = np.array([[3, -1, 2]] * len(pieces.spec.projections))
    codes = np.array([[80, 0, 47]] * len(pieces.spec.projections), np.int8)
    users = [UserData(u.user_id, u.examples) for u in targets[:1]]
    one, other = (
        fitted_picks(banked, users, [(ordinals, codes, 1.0)], pool, FIT, seed=0)[0]
        for pool in (pieces, Louder())
    )
    assert (one[1] == other[1]).all() and one[2] == other[2]
