"""What an erasure leaves behind when it is not done to the end is found, in whatever file it is."""

import os
import shutil
from pathlib import Path

import pytest

from storage.index import PoolIndex
from storage.index_kinds import IndexSettings
from storage.pool import Pool
from storage.remains import remains
from storage.tables import open_table
from storage.upkeep import table_uris
from storage.verify import verify
from storage.withdraw import erase, withdraw

KINDS = ("flat", "ivf", "hnsw")


@pytest.fixture
def pool(tmp_path, spec, adapter):
    pool = Pool.create(str(tmp_path / "pool"), spec=spec)
    pool.commit([adapter("amy"), adapter("bob")])
    return pool


def test_nothing_is_left_after_an_erasure(tmp_path, pool):
    folder = str(tmp_path / "index")
    PoolIndex.open(pool.view(), key="gate", folder=folder).build()
    assert list(remains(pool, index_folders=[folder])) == []
    withdraw(pool, "bob")
    erase(pool, index_folders=[folder])
    assert verify(pool, index_folders=[folder]).problems == []


@pytest.mark.parametrize("table", ["sharers", "pieces_mlp_down_proj"])
def test_files_of_an_old_version_or_of_none_are_found(tmp_path, pool, table):
    data = Path(pool.uri, f"{table}.lance", "data")
    shutil.copytree(data, tmp_path / "kept")
    withdraw(pool, "bob")
    erase(pool)
    shutil.copytree(tmp_path / "kept", data, dirs_exist_ok=True)
    problems = verify(Pool.open(pool.uri)).problems
    assert len(problems) == 1
    assert f"{table}.lance" in problems[0] and "rows of an erased sharer; run clean-up" in problems[0]


def test_rows_that_are_deleted_but_still_in_their_file_are_found(pool, monkeypatch):
    withdraw(pool, "bob")
    monkeypatch.setattr("storage.withdraw.compact_table", lambda uri: None)
    erase(pool)
    problems = verify(pool).problems
    assert len(problems) == len(table_uris(pool))
    assert all(open_table(uri).count_rows("attempt = 0") == 0 for uri in table_uris(pool))


def test_old_indexes_and_files_cut_short_are_found(tmp_path, pool):
    folder = tmp_path / "index"
    for kind in KINDS:
        settings = IndexSettings(kind)
        PoolIndex.open(pool.view(), key="gate", folder=str(folder), settings=settings).build()
    withdraw(pool, "bob")
    erase(pool)  # without naming the folder
    assert len(list(remains(pool, index_folders=[str(folder)]))) == 3 * len(pool.spec.projections)
    erase(pool, index_folders=[str(folder)])
    assert not list(folder.rglob("*.faiss"))
    for kind in KINDS:  # an index of an old version, built since: zeros stand for who was erased
        settings = IndexSettings(kind)
        PoolIndex.open(pool.view(2), key="gate", folder=str(folder), settings=settings).build()
    assert list(remains(pool, index_folders=[str(folder)])) == []
    stray = Path(pool.uri, "pieces_mlp_down_proj.lance", "data", "cut-short.lance")
    stray.write_bytes(b"half a file")
    assert list(remains(pool)) == []  # it may be a write that is going on
    os.utime(stray, (1, 1))
    (problem,) = remains(pool)
    assert "was never finished, and may hold" in problem
