from pathlib import Path

import numpy as np
import pytest

from perpcs.errors import MismatchError, StoreError
from storage.index import PoolIndex, layer_norm
from storage.index_kinds import IndexSettings
from storage.pool import Pool


@pytest.fixture
def pool(tmp_path, spec, adapter):
    pool = Pool.create(str(tmp_path / "pool"), spec=spec)
    pool.commit([adapter(f"u{i}") for i in range(12)])
    return pool


def brute(keys, queries, allowed):
    scores = np.where(allowed, queries @ keys.T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")
    scores = np.take_along_axis(scores, order, 1)
    return scores, np.where(np.isneginf(scores), -1, order)


@pytest.mark.parametrize("key", ["gate", "gradient"])
@pytest.mark.parametrize("users", [1, 40])
def test_search_equals_brute_force(tmp_path, pool, key, users):
    view, rng = pool.view(), np.random.default_rng(0)
    index = PoolIndex.open(view, key=key, folder=str(tmp_path / "index"))
    for name in (p.name for p in pool.spec.projections):
        keys = view.keys(name, key)
        if key == "gate":  # METHOD: s = q . LN(g) / sqrt(d_in)
            keys = layer_norm(keys) / np.sqrt(keys.shape[1])
        queries = rng.standard_normal((users, keys.shape[1])).astype(np.float32)
        for allowed in (None, rng.random(12) < 0.5):
            scores, ordinals = index.search(name, queries, 5, allowed=allowed)
            want, order = brute(keys, queries, np.ones(12, bool) if allowed is None else allowed)
            assert np.array_equal(ordinals, order[:, :5])
            assert np.allclose(scores, want[:, :5], atol=1e-5)
            assert scores.dtype == np.float32


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_scores_of_everybody_and_of_some(tmp_path, pool, adapter, kind):
    pool.commit([adapter("a0")])  # sorts before the others: an index's positions are then not the ordinals
    view, rng = pool.view(), np.random.default_rng(0)
    index = PoolIndex.open(view, key="gradient", folder=str(tmp_path / "index"), settings=IndexSettings(kind))
    name = pool.spec.projections[1].name
    queries = rng.standard_normal((4, view.keys(name, "gradient").shape[1])).astype(np.float32)
    want = queries @ view.keys(name, "gradient").T
    assert np.allclose(index.scores(name, queries), want, atol=1e-5)
    some = rng.integers(0, 13, (4, 3))
    exact = index.scores(name, queries, some)
    assert np.allclose(exact, np.take_along_axis(want, some, 1), atol=1e-5)
    assert np.array_equal(exact[2:3], index.scores(name, queries[2:3], some[2:3])), "whoever else is asked"
    with pytest.raises(MismatchError, match="gradient keys need"):
        index.scores(name, queries[:, :3])


def test_layer_norm_is_the_papers():
    x = np.random.default_rng(1).standard_normal((3, 50)) * 4 + 2
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    assert np.allclose(layer_norm(x), want, atol=1e-5)
    assert np.array_equal(layer_norm(np.zeros((1, 4))), np.zeros((1, 4)))


def test_fewer_than_k_leaves_gaps(tmp_path, pool):
    index = PoolIndex.open(pool.view(), key="gate", folder=str(tmp_path / "index"))
    name = pool.spec.projections[0].name
    allowed = np.zeros(12, bool)
    for count in (0, 2):
        allowed[:count] = True
        scores, ordinals = index.search(name, np.ones((1, 12), np.float32), 3, allowed=allowed)
        assert sorted(ordinals[0, :count].tolist()) == list(range(count))
        assert (ordinals[0, count:] == -1).all()
        assert np.isneginf(scores[0, count:]).all()


def test_the_cache_is_used_and_rebuilt_when_damaged(tmp_path, pool, monkeypatch):
    view, name = pool.view(), pool.spec.projections[0].name
    folder, query = str(tmp_path / "index"), np.ones((1, 12), np.float32)
    want = PoolIndex.open(view, key="gate", folder=folder).search(name, query, 4)
    (path,) = Path(folder).rglob("*.faiss")
    built = []
    monkeypatch.setattr(type(view), "keys_of", count_calls(type(view).keys_of, built))
    again = PoolIndex.open(pool.view(), key="gate", folder=folder).search(name, query, 4)
    assert not built
    assert np.array_equal(want[1], again[1])
    data = path.read_bytes()
    for damage in (data[:-8] + b"\0" * 8, data[: len(data) // 2], b"", b"nonsense"):
        path.write_bytes(damage)
        built.clear()
        again = PoolIndex.open(view, key="gate", folder=folder).search(name, query, 4)
        assert built
        assert np.array_equal(want[0], again[0])
        assert path.read_bytes() == data


def count_calls(function, calls):
    def counted(*args):
        calls.append(args[1:])
        return function(*args)

    return counted


def test_an_index_belongs_to_one_set_of_sharers(tmp_path, pool, adapter):
    folder, name = str(tmp_path / "index"), pool.spec.projections[0].name
    query = np.ones((1, 12), np.float32)
    old = PoolIndex.open(pool.view(), key="gate", folder=folder)
    before = old.search(name, query, 12)
    pool.commit([adapter("a-new-one")])
    new = PoolIndex.open(pool.view(), key="gate", folder=folder)
    assert (new.search(name, query, 13)[1] >= 0).all()
    again = PoolIndex.open(pool.view(old.view.version), key="gate", folder=folder).search(name, query, 12)
    assert np.array_equal(before[1], again[1])


def test_bad_questions(tmp_path, pool, tools):
    index = PoolIndex.open(pool.view(), key="gate", folder=str(tmp_path / "index"))
    with pytest.raises(MismatchError, match=r"\(1, 3\), the gate keys need \[U, 12\]"):
        index.search(pool.spec.projections[0].name, np.ones((1, 3), np.float32), 1)
    with pytest.raises(StoreError, match="no projection 'x'"):
        index.search("x", np.ones((1, 3), np.float32), 1)
    bare = Pool.create(str(tmp_path / "bare"), spec=tools.spec(gates=False, sketch=0))
    for key in ("gate", "gradient"):
        with pytest.raises(StoreError, match=f"no {key} keys"):
            PoolIndex.open(bare.view(), key=key, folder=str(tmp_path / "index"))
