"""Approximate indexes, growth, and search that does not depend on who else asks."""

from pathlib import Path

import numpy as np
import pytest

from perpcs.errors import MismatchError, StoreError
from storage.index import PoolIndex
from storage.index_files import purge
from storage.index_kinds import IndexSettings
from storage.pool import Pool
from storage.withdraw import erase, withdraw

ANN = [IndexSettings("ivf", lists=4, probes=4), IndexSettings("hnsw", effort=64)]


@pytest.fixture
def pool(tmp_path, tools):
    spec = tools.spec(layers=1)
    pool = Pool.create(str(tmp_path / "pool"), spec=spec)
    pool.commit([tools.adapter(f"u{i:03d}", spec) for i in range(60)])
    return pool


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "index")


def questions(pool, users=9):
    return np.random.default_rng(0).standard_normal((users, 12)).astype(np.float32), pool.spec.projections[
        0
    ].name


def test_settings_resolve_by_size():
    auto = IndexSettings(threshold=100)
    assert auto.resolve(100).kind == "flat"
    assert auto.resolve(101).kind == "ivf"
    big = IndexSettings("ivf").resolve(1_000_000)
    assert (big.lists, big.probes) == (4000, 500)
    assert IndexSettings("ivf", lists=50).resolve(3).lists == 3
    assert IndexSettings("ivf").resolve(0).lists == 1
    for bad in (
        {"kind": "lsh"},
        {"links": 1},
        {"probes": -1},
        {"numbers": "int8"},
        {"kind": "hnsw", "numbers": "float16"},
    ):
        with pytest.raises(StoreError, match="index"):
            IndexSettings(**bad)


@pytest.mark.parametrize("settings", ANN, ids=lambda s: s.kind)
def test_an_exhaustive_setting_finds_what_flat_finds(pool, folder, settings):
    queries, name = questions(pool)
    flat = PoolIndex.open(pool.view(), key="gate", folder=folder, settings=IndexSettings("flat"))
    near = PoolIndex.open(pool.view(), key="gate", folder=folder, settings=settings)
    allowed = np.arange(60) % 3 == 0
    for mask in (None, allowed):
        want, got = flat.search(name, queries, 3, allowed=mask), near.search(name, queries, 3, allowed=mask)
        assert np.array_equal(want[1], got[1])
        assert np.allclose(want[0], got[0], atol=1e-5)
    assert near.recall(name, queries, 3) == 1.0
    again = PoolIndex.open(pool.view(), key="gate", folder=folder, settings=settings)
    assert np.array_equal(again.search(name, queries, 3)[1], near.search(name, queries, 3)[1])


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_half_precision_keeps_the_order_of_all_but_neighbours(pool, folder, kind):
    queries, name = questions(pool, 40)
    half = IndexSettings(kind, lists=4, probes=4, numbers="float16")
    index = PoolIndex.open(pool.view(), key="gate", folder=folder, settings=half)
    whole = PoolIndex.open(pool.view(), key="gate", folder=folder, settings=IndexSettings("flat"))
    (want, _), (got, _) = whole.search(name, queries, 3), index.search(name, queries, 3)
    assert np.allclose(want, got, atol=2e-3) and not np.array_equal(want, got)
    assert index.recall(name, queries, 3) > 0.95
    assert np.array_equal(index.search(name, queries[:1], 3)[1], index.search(name, queries, 3)[1][:1])


@pytest.mark.parametrize("block", [1, 7, 60, 8192])
def test_products_in_blocks_find_what_faiss_finds(pool, folder, monkeypatch, block):
    monkeypatch.setattr("storage.index_kinds._BLOCK" if block > 1 else "storage.index_kinds._SCORES", block)
    queries, name = questions(pool)
    PoolIndex.open(pool.view(), key="gate", folder=folder).build()
    index = PoolIndex.open(pool.view(), key="gate", folder=folder)  # mapped from its files
    for share in (1.0, 0.5, 0.03):
        allowed = np.random.default_rng(3).random(60) < share
        scores, ordinals = index.search(name, queries, 5, allowed=allowed)
        for i in range(len(queries)):  # one query is answered by FAISS itself
            alone = index.search(name, queries[i : i + 1], 5, allowed=allowed)
            assert alone[0].tobytes() == scores[i : i + 1].tobytes()
            assert np.array_equal(alone[1], ordinals[i : i + 1])


def test_recall_tells_of_too_few_probes(pool, folder):
    queries, name = questions(pool, 40)
    poor = IndexSettings("ivf", lists=15, probes=1)
    index = PoolIndex.open(pool.view(), key="gate", folder=folder, settings=poor)
    assert 0.05 < index.recall(name, queries, 5) < 0.95


@pytest.mark.parametrize("settings", [IndexSettings("flat"), *ANN], ids=lambda s: s.kind)
def test_a_grown_pool_extends_its_index(pool, folder, settings, tools, monkeypatch):
    queries, name = questions(pool)
    PoolIndex.open(pool.view(), key="gate", folder=folder, settings=settings).build()
    pool.commit([tools.adapter(f"n{i}", pool.spec) for i in range(5)])
    withdraw(pool, "u007")
    view, read = pool.view(), []
    original = type(view).keys_of
    monkeypatch.setattr(type(view), "keys_of", lambda *a: (read.append(len(a[3])), original(*a))[1])
    fresh = PoolIndex.open(view, key="gate", folder=folder + "-fresh", settings=settings)
    want = fresh.search(name, queries, 5)
    assert sum(read) >= 64
    read.clear()
    # u007 is in the old index, so that one must not be extended: its vector would stay.
    assert np.array_equal(
        PoolIndex.open(view, key="gate", folder=folder, settings=settings).search(name, queries, 5)[1],
        want[1],
    )
    assert sum(read) >= 64
    pool.commit([tools.adapter("zzz", pool.spec), tools.adapter("000", pool.spec)])
    read.clear()
    grown = PoolIndex.open(pool.view(), key="gate", folder=folder, settings=settings)
    got = grown.search(name, queries, 66)
    assert sum(read) == 2
    fresh = PoolIndex.open(pool.view(), key="gate", folder=folder + "-2", settings=settings)
    want = fresh.search(name, queries, 66)
    assert np.array_equal(np.sort(want[1]), np.sort(got[1]))
    if settings.kind == "flat":
        assert np.array_equal(want[1], got[1])
        assert want[0].tobytes() == got[0].tobytes()


def test_a_query_alone_scores_as_in_a_batch(tmp_path, tools):
    spec = tools.spec(layers=1, sketch=24, gates=False)
    pool = Pool.create(str(tmp_path / "pool"), spec=spec)
    pool.commit([tools.adapter(f"u{i}", spec) for i in range(30)])
    index = PoolIndex.open(pool.view(), key="gradient", folder=str(tmp_path / "index"))
    queries = np.random.default_rng(1).standard_normal((50, 576)).astype(np.float32)
    name = spec.projections[0].name
    scores, ordinals = index.search(name, queries, 4)
    for i in range(50):
        alone = index.search(name, queries[i : i + 1], 4)
        assert alone[0].tobytes() == scores[i : i + 1].tobytes()
        assert np.array_equal(alone[1], ordinals[i : i + 1])


def test_many_projections_at_once_with_their_own_masks(pool, folder):
    rng = np.random.default_rng(2)
    index = PoolIndex.open(pool.view(), key="gate", folder=folder)
    queries = {p.name: rng.standard_normal((3, p.d_in)) for p in pool.spec.projections}
    masks = {pool.spec.projections[0].name: rng.random(60) < 0.3}
    found = index.search_many(queries, 4, allowed=masks)
    for name, rows in queries.items():
        want = index.search(name, rows, 4, allowed=masks.get(name))
        assert np.array_equal(found[name][1], want[1])
    name = pool.spec.projections[0].name
    with pytest.raises(MismatchError, match=r"mask .* has shape \(5,\)"):
        index.search(name, queries[name], 1, allowed=np.ones(5, bool))


def test_purging_keeps_the_named_view(pool, folder, tools):
    from storage.index import identity

    PoolIndex.open(pool.view(), key="gate", folder=folder).build()
    pool.commit([tools.adapter("new", pool.spec)])
    PoolIndex.open(pool.view(), key="gate", folder=folder).build()
    assert purge(folder, keep=identity(pool.view())) == 9
    assert {path.parent.name.split("-")[-1] for path in Path(folder).rglob("*.faiss")} == {
        identity(pool.view())
    }
    withdraw(pool, "u001")
    erase(pool, index_folders=[folder])
    assert not list(Path(folder).rglob("*.faiss"))
