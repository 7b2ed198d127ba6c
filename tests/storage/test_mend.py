import numpy as np
import pytest

from perpcs.records import Recipe, quantise_weights
from storage.mend import MENDED, mend, renormalised
from storage.pool import Pool
from storage.withdraw import erase, stale_recipes, withdraw

WEIGHTS = np.array([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0], [1.0, 0.0, 0.0]])
ORDINALS = np.array([[0, 1, 2], [2, 1, 0], [1, 0, 0]], np.uint16)


def recipe(user_id="x", version=2, weights=WEIGHTS):
    codes, scale = quantise_weights(weights)
    return Recipe(
        user_id, "gate/concat", "base-1", version, "concat", ORDINALS, codes, scale, {"from": "test"}
    )


def test_what_stays_is_scaled_to_the_same_sum():
    old, new = recipe(), renormalised(recipe(), np.array([False, True, False]))
    want = [[0.5 / 0.7, 0, 0.2 / 0.7], [1.0, 0, 0], [0, 0, 0]]
    assert np.allclose(new.weights, want, atol=2 / 254)
    assert np.allclose(new.weights.sum(1)[:2], old.weights.sum(1)[:2], atol=2 / 254)
    assert np.array_equal(new.ordinals, old.ordinals)
    assert np.array_equal(renormalised(old, np.zeros(3, bool)).codes, old.codes)
    assert renormalised(old, np.ones(3, bool)) is None


@pytest.mark.parametrize("erased", [False, True])
def test_recipes_of_a_pool(tmp_path, tools, erased):
    spec = tools.spec(layers=1)
    pool = Pool.create(str(tmp_path / "pool"), spec=spec)
    pool.commit([tools.adapter(i, spec) for i in ("amy", "bob", "cat")])
    withdraw(pool, "bob")
    if erased:
        erase(pool)
    only_bob = recipe("y", weights=np.array([[0, 1.0, 0], [0, 1.0, 0], [1.0, 0, 0]]))
    untouched = recipe("z", weights=np.array([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]))
    mended, empty = mend(pool, [recipe(), only_bob, untouched])
    assert [r.user_id for r in empty] == ["y"]
    (new,) = mended
    assert new.extra == {"from": "test", MENDED: str(pool.view().version)}
    assert stale_recipes(pool, mended) == []
    view = pool.view(new.pool_version)
    for row, codes, p in zip(new.ordinals, new.codes, spec.projections, strict=True):
        view.fetch(p.name, row[codes != 0].astype(np.int64))  # it resolves
