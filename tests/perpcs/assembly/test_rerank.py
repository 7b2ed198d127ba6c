"""Re-ranking by likelihood: the weights from losses, the shortlist, and what no company or withdrawal may change."""

import numpy as np
import pytest

from perpcs.assembly.pieces import PartialPieces
from perpcs.assembly.rerank import candidate_losses, likelihood_weights, shortlist, trust, weighted_picks
from perpcs.assembly.rules import history_queries

NEAR = np.array([[0, 1, 2], [3, 4, 5]])


def test_weights_are_a_softmax_in_which_the_base_takes_part():
    losses = np.array([[0.5, 0.3, 0.5, 0.9], [0.2, 0.8, 0.9, 1.0]])
    got = likelihood_weights(losses, temperature=0.1)
    expected = np.exp(-losses / 0.1) / np.exp(-losses / 0.1).sum(1, keepdims=True)
    np.testing.assert_allclose(got, expected[:, 1:])
    assert got[0].sum() > 0.85 and got[1].sum() < 0.01, "nothing is added where the base alone explains best"


def test_large_losses_do_not_overflow():
    got = likelihood_weights(np.array([[900.0, 950.0, 899.9]]), temperature=0.01)
    np.testing.assert_allclose(got.sum(), 1.0, atol=1e-4)


def test_the_heaviest_are_kept_and_take_over_the_weight_of_the_rest(pieces):
    weights = np.array([[0.1, 0.5, 0.2], [0.0, 0.0, 0.0]])
    (ordinals, codes, scale), (_, nothing, _) = weighted_picks(NEAR, weights, pieces, top_k=2)
    assert (ordinals == [1, 2]).all() and scale == 1.0
    assert (codes.astype(int).sum(1) == round(0.8 * 127)).all() and (codes[:, 0] > 2 * codes[:, 1]).all()
    assert (nothing == 0).all()


def test_an_assembly_from_few_items_is_trusted_in_part():
    assert [trust(n, 4) for n in (1, 4, 5, 100)] == [0.5, 1.0, 1.0, 1.0]
    assert trust(2, 4) == pytest.approx(0.5**0.5)
    assert trust(1, 0) == 1.0


def test_losses_are_the_bases_and_each_sharers_own(banked, pieces, targets, losses_with):
    """The first row is the plain base; a sharer's row is the loss under its own adapter."""
    near = np.tile([4, 1], (len(targets), 1))
    found = candidate_losses(banked, targets, pieces, near, items_per_pass=10)
    for user, losses in zip(targets, found, strict=True):
        np.testing.assert_allclose(losses[0], losses_with(user, None), rtol=1e-4, atol=1e-4)
        for row, ordinal in ((1, 4), (2, 1)):
            full = (np.full((8, 1), ordinal), np.full((8, 1), 127, np.int8), 1.0)
            np.testing.assert_allclose(losses[row], losses_with(user, full), rtol=1e-4, atol=1e-4)


@pytest.fixture
def queries(banked, pieces, targets):
    return history_queries(banked, targets, pieces.spec)


def test_the_nearest_by_history_key_is_always_on_the_shortlist(pieces, queries):
    by_gradient = shortlist(queries, pieces.history_keys()[[0, 1, 2]], pieces, 3)
    for ordinal in range(6):
        keys = np.tile(pieces.history_keys()[ordinal], (3, 1))
        near = shortlist(queries, keys, pieces, 3)
        assert (near == ordinal).any(axis=1).all()
        assert (near[:, :2] == by_gradient[:, :2]).all()
        assert all(len(set(row)) == 3 for row in near.tolist())


def test_pieces_that_are_not_shared_are_neither_judged_nor_picked(banked, pieces, targets):
    shared = np.ones((6, 8), bool)
    shared[0, :4] = shared[3] = False
    part = PartialPieces(pieces, shared)
    queries = history_queries(banked, targets, part.spec)
    near = shortlist(queries, pieces.history_keys()[[3, 3, 3]], part, 6)
    assert near.shape == (3, 5) and 3 not in near
    picks = weighted_picks(near, np.full((3, 5), 0.2), part, top_k=5)
    for ordinals, codes, _ in picks:
        assert not ((ordinals[:4] == 0) & (codes[:4] != 0)).any() and (ordinals[4:] == 0).any()
    half, whole = (candidate_losses(banked, targets, p, near, items_per_pass=64) for p in (part, pieces))
    column = 1 + int(np.flatnonzero(near[0] == 0)[0])
    assert np.abs(half[0][column] - whole[0][column]).max() > 1e-4
