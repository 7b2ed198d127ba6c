"""A pool that is dropped is gone; whoever is killed meanwhile leaves an older pool or none, and room for a new one."""

import pytest

from storage import drop
from storage.drop import drop_pool
from storage.files import walk
from storage.pool import Pool, pool_exists


class Killed(BaseException):
    pass


def killed_after(monkeypatch, count):
    """The process dies before it removes its file number `count`."""
    calls = iter(range(count + 1))

    def remove(path):
        if next(calls) == count:
            raise Killed
        drop.local(path).unlink()

    monkeypatch.setattr(drop, "remove", remove)


@pytest.fixture
def filled(tmp_path, spec, adapter):
    """A pool of two commits."""
    uri = str(tmp_path / "pool")
    pool = Pool.create(uri, spec=spec)
    for user_id in ("amy", "bob"):
        pool.commit([adapter(user_id)])
    return uri


def test_nothing_is_left(filled):
    drop_pool(filled)
    assert not pool_exists(filled) and walk(filled) == []
    drop_pool(filled)  # a second time finds nothing to do


@pytest.mark.parametrize("count", [*range(12), 20, 30])
def test_killed_at_any_file(filled, monkeypatch, spec, adapter, tools, count):
    with monkeypatch.context() as dying, pytest.raises(Killed):
        killed_after(dying, count)
        drop_pool(filled)
    if pool_exists(filled):
        view = Pool.open(filled).view()
        assert set(view.ids) <= {"amy", "bob"}
        for user_id in view.ids:
            tools.same(view.adapter(user_id), adapter(user_id))
    pool = Pool.open_or_create(filled, spec=spec)
    pool.commit([adapter(user_id) for user_id in ("amy", "bob")])
    for user_id in ("amy", "bob"):
        tools.same(pool.view().adapter(user_id), adapter(user_id))
    drop_pool(filled)
    assert walk(filled) == []
