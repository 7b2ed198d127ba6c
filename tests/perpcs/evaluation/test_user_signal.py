"""What the measures of user signal say of keys whose answer is known."""

import numpy as np
import pytest

from perpcs.evaluation.user_signal import common_share, rank_correlation, recognised, user_signal


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def test_users_with_a_direction_of_their_own_are_recognised_and_strangers_are_not(draw):
    own = draw.normal(size=(12, 3, 16))
    noise = [0.3 * draw.normal(size=own.shape) for _ in range(2)]
    assert recognised(own + noise[0], own + noise[1]) > 0.99
    assert abs(recognised(draw.normal(size=(40, 3, 16)), draw.normal(size=(40, 3, 16))) - 0.5) < 0.1


def test_scores_that_are_everybodys_are_common_and_centring_finds_what_is_below(draw):
    popular, mine = 10 * draw.normal(size=(1, 20)), draw.normal(size=(15, 20))
    assert common_share(popular + 0 * mine) == pytest.approx(1.0)
    assert common_share(mine) < 0.2
    zeros = np.zeros((15, 1, 4))
    found = user_signal(zeros, zeros, popular + mine, mine)
    assert found.common > 0.95 and found.likeness < 0.3 and found.likeness_centred > 0.9
    assert user_signal(zeros, zeros, mine, None).likeness is None


def test_rank_correlation_is_spearmans(draw):
    from scipy.stats import spearmanr

    a, b = draw.normal(size=(4, 9)), draw.normal(size=(4, 9)).round(1)
    expected = np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert rank_correlation(a, b) == pytest.approx(expected)
