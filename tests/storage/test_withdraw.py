import numpy as np
import pytest

from perpcs.errors import StoreError
from perpcs.records import Recipe
from storage.index import PoolIndex
from storage.pool import Pool
from storage.upkeep import cleanup, compact
from storage.verify import verify
from storage.withdraw import affected_recipes, erase, search, stale_recipes, take_samples, withdraw


@pytest.fixture
def pool(tmp_path, spec, adapter):
    pool = Pool.create(str(tmp_path / "pool"), spec=spec)
    for user_id in ("amy", "bob-the-distinct", "cat"):
        pool.commit([adapter(user_id)])
    return pool


def recipe(user_id, view, ordinal, code=127):
    ordinals = np.zeros((len(view.spec.projections), 2), np.uint16)
    ordinals[0, 1] = ordinal
    codes = np.full(ordinals.shape, 127, np.int8)
    codes[0, 1] = code
    return Recipe(user_id, "gradient", "base-1", view.version, "concat", ordinals, codes, 1.0)


def test_withdrawal_hides_at_once_and_names_the_recipes(tmp_path, pool):
    view = pool.view()
    uses, idle, other = recipe("x", view, 1), recipe("y", view, 1, code=0), recipe("z", view, 2)
    assert affected_recipes(pool, [uses, idle, other], ["bob-the-distinct"]) == [uses]
    version = withdraw(pool, "bob-the-distinct")
    assert pool.view().ids == ("amy", "cat")
    assert pool.view().version == version
    assert affected_recipes(pool, [uses, idle, other], ["bob-the-distinct"]) == [uses]
    assert stale_recipes(pool, [uses, idle, other]) == [uses]
    old = pool.view(view.version)
    assert old.ids == view.ids
    assert old.live.tolist() == [True, False, True]
    index = PoolIndex.open(old, key="gate", folder=str(tmp_path / "index"))
    _, ordinals = index.search(pool.spec.projections[0].name, np.ones((1, 12), np.float32), 3)
    assert sorted(ordinals[0].tolist()) == [-1, 0, 2]
    with pytest.raises(StoreError, match="withdrawn already"):
        withdraw(pool, "bob-the-distinct")


def test_a_sharer_may_come_back(pool, adapter, tools):
    withdraw(pool, "amy")
    assert pool.commit([adapter("amy", seed=3)]).added == ("amy",)
    tools.same(pool.view().adapter("amy"), adapter("amy", seed=3))
    tools.same(pool.view(4).adapter("amy"), adapter("amy"))
    erase(pool)
    fresh = Pool.open(pool.uri)
    tools.same(fresh.view().adapter("amy"), adapter("amy", seed=3))
    assert fresh.view(4).ids == ("", "bob-the-distinct", "cat")


def test_erasure_leaves_no_byte_and_keeps_old_ordinals(tmp_path, pool, adapter, tools):
    folder, name = str(tmp_path / "index"), pool.spec.projections[0].name
    before = pool.view()
    for key in ("gate", "gradient"):
        PoolIndex.open(before, key=key, folder=folder).search(
            name, np.ones((1, 12 if key == "gate" else 9)), 1
        )
    gone = {int(before.attempts[1])}
    samples = take_samples(pool, gone)
    places = [pool.uri, folder]
    assert (
        len(search(samples, places)) >= 5
    )  # the samples are found where the data is: the proof proves something
    assert search([b"bob-the-distinct"], places)
    kept = [recipe("x", before, 2), recipe("y", before, 1)]
    withdraw(pool, "bob-the-distinct")
    done = erase(pool, index_folders=[folder])
    assert (done.sharers, done.rows, done.found) == (1, 6, ())
    assert done.samples >= 12
    assert search([*samples, b"bob-the-distinct"], places) == []
    for reader in (pool, Pool.open(pool.uri)):
        old = reader.view(before.version)
        assert old.ids == ("amy", "", "cat")
        assert old.live.tolist() == [True, False, True]
        assert np.array_equal(old.fetch(name, np.array([2, 0]))[0][0], adapter("cat").pieces[name].a)
        assert not old.keys(name, "gate")[1].any()
        assert not old.history_keys()[1].any()
        with pytest.raises(StoreError, match="erased after a withdrawal"):
            old.fetch(name, np.array([1]))
        tools.same(old.adapter("cat"), adapter("cat"))
        assert stale_recipes(reader, kept) == [kept[1]]
        assert reader.view().ids == ("amy", "cat")
        assert not verify(reader).problems
    assert erase(pool) == type(done)(0, 0, 0, ())


def test_places_hold_through_erasure_after_erasure(tmp_path, spec, adapter):
    """Any order of leaving, with newcomers in between: the ordinals of everybody else never move."""
    rng = np.random.default_rng(0)
    for trial in range(4):
        pool = Pool.create(str(tmp_path / str(trial)), spec=spec)
        ids = [f"u{i:02d}" for i in range(8)]
        pool.commit([adapter(user_id) for user_id in ids])
        history = [(pool.view().version, pool.view().attempts)]
        for step in range(4):
            for user_id in rng.choice(sorted(pool.committed()), 2, replace=False):
                withdraw(pool, str(user_id))
            if step != 1:
                erase(pool)
            pool.commit([adapter(f"u{rng.integers(0, 100):02d}-{step}") for _ in range(1)])
            history.append((pool.view().version, pool.view().attempts))
        erase(pool)
        for reader in (pool, Pool.open(pool.uri)):
            for version, attempts in history:
                assert np.array_equal(reader.view(version).attempts, attempts)


@pytest.mark.parametrize("stage", range(4))
def test_an_erasure_cut_short_can_be_repeated(pool, adapter, monkeypatch, stage):
    import storage.withdraw as module

    before = pool.view()
    withdraw(pool, "amy")
    names = ["event_rows", "delete_attempts", "open_table", "compact_table"]

    def die(*_):
        raise KeyboardInterrupt

    samples = take_samples(pool, {int(before.attempts[0])})
    monkeypatch.setattr(module, "take_samples", lambda *_: samples)
    monkeypatch.setattr(module, "_to_erase", lambda *_: {int(before.attempts[0])})
    monkeypatch.setattr(module, names[stage], die)
    with pytest.raises(KeyboardInterrupt):
        erase(pool)
    monkeypatch.undo()
    again = Pool.open(pool.uri)
    assert again.view().ids == ("bob-the-distinct", "cat")
    assert np.array_equal(again.view(before.version).attempts, before.attempts)
    erase(again)
    compact(again)
    cleanup(again, grace_s=0)
    assert search(samples, [pool.uri]) == []
    assert not verify(Pool.open(pool.uri)).problems
    assert np.array_equal(Pool.open(pool.uri).view(before.version).attempts, before.attempts)


def test_a_second_commit_of_the_same_sharer_under_way_is_erased_too(pool, adapter):
    slow = Pool.open(pool.uri)
    slow.log.refresh()
    plan = slow._plan
    slow._plan = lambda adapters: (plan(adapters), pool.commit([adapter("dan", seed=1)]))[0]
    assert slow.commit([adapter("dan")]).superseded == ("dan",)
    withdraw(pool, "dan")
    assert erase(pool).rows == 12


@pytest.mark.parametrize(
    "lands", ["before the withdrawal", "before the erasure", "after the erasure", "after the next"]
)
def test_a_commit_under_way_does_not_bring_an_erased_sharer_back(pool, adapter, lands):
    slow, follower = Pool.open(pool.uri), Pool.open(pool.uri)
    plan = slow._plan

    def overtaken(adapters):
        batch = plan(adapters)
        pool.commit([adapter("dan", seed=1)])
        if lands != "before the withdrawal":
            withdraw(pool, "dan")
        if lands.startswith("after"):
            erase(pool)
            follower.committed()
        if lands == "after the next":
            withdraw(pool, "amy")
            erase(pool)
        return batch

    slow._plan = overtaken
    done = slow.commit([adapter("dan"), adapter("eve")])
    assert (done.added, done.superseded) == (("eve",), ("dan",))
    if lands == "before the withdrawal":
        withdraw(pool, "dan")
    erase(pool)
    withdraw(pool, "bob-the-distinct")
    erase(pool)
    for reader in (pool, slow, follower, Pool.open(pool.uri)):
        assert "dan" not in reader.committed()
        for version in range(1, reader.view().version + 1):
            assert "dan" not in reader.view(version).ids or version < done.version
    assert pool.commit([adapter("dan")]).added == ("dan",)  # a new commit is a new decision
    assert "dan" in Pool.open(pool.uri).committed()


def test_a_late_commit_of_an_erased_sharer_is_erased_too(pool, adapter):
    slow = Pool.open(pool.uri)
    plan = slow._plan
    slow._plan = lambda adapters: (
        plan(adapters),
        pool.commit([adapter("dan", 1)]),
        withdraw(pool, "dan"),
        erase(pool),
    )[0]
    assert slow.commit([adapter("dan")]).superseded == ("dan",)
    assert search([b"dan"], [pool.uri])
    fresh = Pool.open(pool.uri)  # it knows "dan" by the mark alone
    assert fresh.log.refresh().departed("dan")
    assert erase(fresh).rows == 6
    assert search([b"dan"], [pool.uri]) == []


def test_who_withdraws_while_trained_is_never_a_sharer(pool, adapter):
    decided = pool.view().version
    with pytest.raises(StoreError, match="no sharer 'dan'"):
        withdraw(pool, "dan")
    pool.commit([adapter("eve")])
    withdraw(pool, "dan", ahead=True)
    with pytest.raises(StoreError, match="withdrawn already"):
        withdraw(pool, "dan", ahead=True)
    other = Pool.open(pool.uri)
    assert other.log.refresh().departed("dan") and not other.log.refresh().departed("nobody")
    done = other.commit([adapter("dan"), adapter("fay")], decided=decided)
    assert (done.added, done.superseded) == (("fay",), ("dan",))
    withdraw(pool, "amy")
    assert erase(pool).sharers == 1
    assert search([b"dan"], [pool.uri]) == []
    for reader in (pool, Pool.open(pool.uri)):
        assert reader.log.refresh().departed("dan")
        assert reader.view().ids == ("bob-the-distinct", "cat", "eve", "fay")
        assert reader.commit([adapter("dan")], decided=decided).added == ()
    assert not verify(pool).problems
    assert pool.commit([adapter("dan")]).added == ("dan",)  # a new decision
    assert not Pool.open(pool.uri).log.refresh().departed("dan")
