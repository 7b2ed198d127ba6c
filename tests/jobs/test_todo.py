"""What is left to train: never somebody who has withdrawn."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jobs.packs import PoolWorker
from jobs.todo import missing
from perpcs.population.prompts import Encoded
from storage.pool import Pool
from storage.withdraw import erase, withdraw

_where = Path(__file__).parents[1] / "storage" / "conftest.py"
_spec = importlib.util.spec_from_file_location("small_pools", _where)
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

WANTED = ("amy", "bob", "cat", "dan", "eve")


@pytest.fixture
def pool(tmp_path):
    pool = Pool.create(str(tmp_path / "pool"), spec=small.make_spec(layers=1))
    pool.commit([small.make_adapter(user_id, pool.spec) for user_id in ("amy", "bob", "cat")])
    return pool


def left(uri):
    return missing(uri, lambda: WANTED)


def test_nobody_who_withdrew_is_trained_again_whether_erased_or_not(tmp_path, pool):
    assert left(str(tmp_path / "nothing")) == list(WANTED)
    assert left(pool.uri) == ["dan", "eve"]
    withdraw(pool, "bob")
    withdraw(pool, "eve", ahead=True)
    assert left(pool.uri) == ["dan"]
    erase(pool)
    assert left(pool.uri) == ["dan"]  # their ids are in no table any more
    pool.commit([small.make_adapter("bob", pool.spec)])
    assert left(pool.uri) == ["dan"]


def test_who_withdraws_while_their_pack_trains_is_not_committed(pool, monkeypatch):
    """The worker as it is, without a model: what it trains is made by the test."""

    class Worker(PoolWorker):
        visits = 1

        def __init__(self):
            self.uri, self.paths = pool.uri, type("P", (), {"population": "nowhere"})
            self.base = SimpleNamespace(model=SimpleNamespace(device=torch.device("cpu")))
            self.prompter = type("Q", (), {"history": lambda self, user: [Encoded([1], [2])]})()

        def train(self, users, data):
            withdraw(pool, "dan", ahead=True)
            return [small.make_adapter(user.id, pool.spec) for user in users], {}

        def pool(self, adapters):
            return Pool.open(self.uri)

    monkeypatch.setattr("jobs.packs.read_users", lambda uri, ids: [type("U", (), {"id": i}) for i in ids])
    Worker().run(["dan", "eve"])
    assert Pool.open(pool.uri).committed() == {"amy", "bob", "cat", "eve"}
