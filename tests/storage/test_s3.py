"""The same guarantees on an object store."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from perpcs.errors import StoreError
from perpcs.records import Item, Population, User
from storage import files
from storage.index import PoolIndex
from storage.pool import Pool
from storage.population import read_population, write_population
from storage.transfer import export_pool, import_pool
from storage.upkeep import Upkeep, cleanup, compact
from storage.verify import verify
from storage.withdraw import erase, search, take_samples, withdraw

WRITER = str(Path(__file__).with_name("writer.py"))


@pytest.fixture
def bucket(s3_environment, monkeypatch, request):
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://pools/{request.node.name}"


def test_small_files(bucket):
    uri = files.join(bucket, "a", "x.json")
    assert not files.exists(uri)
    files.write_json(uri, [1, "ü"])
    assert files.read_json(uri) == [1, "ü"]
    assert files.walk(bucket) == [(uri, len('[\n  1,\n  "ü"\n]\n'.encode()))]
    files.remove(uri)
    files.remove(uri)
    assert not files.exists(uri)
    with pytest.raises(StoreError, match="cannot be read"):
        files.read_bytes(uri)


def test_a_pools_life(bucket, tmp_path, spec, adapter, tools):
    pool = Pool.create(bucket, spec=spec)
    pool.upkeep = Upkeep(fan=3, grace_s=0)
    for user_id in ("amy", "bob", "cat", "dan"):
        pool.commit([adapter(user_id)])
    name, index = spec.projections[0].name, files.join(bucket, "index")
    before = pool.view()
    query = np.ones((1, 12), np.float32)
    want = PoolIndex.open(before, key="gate", folder=index).search(name, query, 4)
    again = PoolIndex.open(before, key="gate", folder=index).search(name, query, 4)
    assert np.array_equal(want[1], again[1])
    compact(pool)
    cleanup(pool, grace_s=0)
    for user_id in before.ids:
        tools.same(before.adapter(user_id), adapter(user_id))
    samples = take_samples(pool, {int(before.attempts[1])})
    assert search(samples, [bucket])
    withdraw(pool, "bob")
    assert erase(pool, index_folders=[index]).found == ()
    assert search(samples, [bucket]) == []
    assert Pool.open(bucket).view(before.version).ids == ("amy", "", "cat", "dan")
    assert not verify(pool).problems
    export_pool(pool.view(), str(tmp_path / "export"))
    assert import_pool(Pool.create(bucket + "-copy", spec=spec), str(tmp_path / "export")) == 3


def test_writers_that_race_and_one_that_dies(bucket, spec):
    ids = [f"u{i}" for i in range(5)]
    writers = [
        subprocess.Popen(
            [sys.executable, WRITER, bucket, "each", str(i), *ids, f"own{i}"], stdout=subprocess.DEVNULL
        )
        for i in range(3)
    ]
    victim = subprocess.Popen([sys.executable, WRITER, bucket, "each", "9", "v1", "v2", "v3", "v4"])
    while not files.exists(files.join(bucket, "sharers.lance")):
        time.sleep(0.05)
    time.sleep(0.5)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    for writer in writers:
        assert writer.wait(120) == 0
    pool = Pool.open(bucket)
    assert {*ids, "own0", "own1", "own2"} <= pool.committed()
    assert not verify(pool).problems


def test_a_population(bucket):
    users = tuple(User(f"u{i}", (Item("1", (("text", "a"),)),)) for i in range(3))
    population = Population("LaMP-4", users, (), ())
    write_population(bucket, population)
    assert read_population(bucket) == population


def test_no_credentials_are_one_clear_line(bucket, monkeypatch, spec):
    Pool.create(bucket, spec=spec)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match=r"s3://.*credentials") as caught:
        Pool.open(bucket)
    assert "\n" not in str(caught.value)
