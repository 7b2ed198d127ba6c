"""Pieces read straight from data files are those that Lance reads; where that cannot be, Lance reads."""

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from perpcs.errors import StoreError
from perpcs.records import PoolSpec, Projection
from storage.direct import DirectReader, widen
from storage.pieces import PieceRows
from storage.pool import Pool
from storage.tables import vectors
from storage.upkeep import cleanup, compact
from storage.withdraw import erase, withdraw

WIDE = PoolSpec("base", 8, 8.0, tuple(Projection(i, "q", 64, 48, f"q{i}") for i in range(2)), gates=True)


@pytest.fixture(params=["float32", "float16"])
def pool(tmp_path, tools, request):
    pool = Pool.create(str(tmp_path / "pool"), spec=WIDE, dtype=request.param)
    for i in range(6):
        pool.commit([tools.adapter(f"u{i}", WIDE)])
    return pool


def directly(view, choice):
    """What is fetched while Lance may not read."""

    def refuse(*_):
        raise AssertionError("read by Lance")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PieceRows, "take", refuse)
        return view.fetch_many(choice)


def wanted(*ordinals):
    return {p.name: np.array(ordinals) for p in WIDE.projections}


def by_lance(view, choice):
    view.check = True  # checks need whole pieces, which Lance reads
    found = view.fetch_many(choice)
    view.check = False
    return found


def assert_equal(left, right):
    for name, pair in left.items():
        for x, y in zip(pair, right[name], strict=True):
            assert x.dtype == np.float32 and x.flags.writeable
            assert np.array_equal(x, y)


def test_the_same_bits_as_lance_through_a_pools_life(pool):
    choice = wanted(4, 0, 4, 2)
    want = by_lance(pool.view(), choice)
    assert_equal(want, directly(pool.view(), choice))
    compact(pool)
    assert_equal(want, directly(pool.view(), choice))
    withdraw(pool, "u1")
    erase(pool)
    assert_equal(want, directly(pool.view(), wanted(3, 0, 3, 1)))


def test_every_finite_half_becomes_the_same_float():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    found = np.empty(len(halves), np.float32)
    widen(halves, found)
    assert found.tobytes() == halves.astype(np.float32).tobytes()


def test_a_reader_whose_files_are_removed_goes_on(pool):
    view, choice = pool.view(), wanted(5, 1)
    want = view.fetch_many(choice)
    compact(pool)
    cleanup(pool, grace_s=0)
    assert_equal(want, view.fetch_many(choice))  # by Lance, which opens the table anew
    assert_equal(want, view.fetch_many(choice))


def test_a_file_cut_short_is_one_clear_line(pool):
    compact(pool)
    view = pool.view()
    view.fetch_many(wanted(0))
    for path in Path(pool.uri, "pieces_q.lance", "data").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"pieces_q\.lance: .* failed"):
        view.fetch_many(wanted(5))


@pytest.mark.parametrize("case", ["flat", "narrow", "null"])
def test_only_columns_that_lie_flat_are_read(tmp_path, case):
    width = 8 if case == "narrow" else 512
    values = np.random.default_rng(0).standard_normal((40, width)).astype(np.float32)
    column = vectors(values)
    if case == "null":
        column = pa.array([None, *column.to_pylist()[1:]], column.type)
    uri = str(tmp_path / "t.lance")
    table = lance.write_dataset(pa.table({"v": column}), uri)
    reader, found = DirectReader(table, uri, ["v"]), np.zeros((3, width), np.float32)
    assert reader.read(np.array([39, 1, 20]), {"v": found}) == (case == "flat")
    if case == "flat":
        assert np.array_equal(found, values[[39, 1, 20]])


def test_a_layout_that_only_looks_flat_is_noticed(tmp_path, monkeypatch):
    """Same sizes, other bytes: what Lance reads decides."""
    uri = str(tmp_path / "t.lance")
    table = lance.write_dataset(pa.table({"v": vectors(np.ones((4, 512), np.float32))}), uri)
    monkeypatch.setattr("storage.direct.matrix", lambda column: np.zeros((2, 512), np.float32))
    assert not DirectReader(table, uri, ["v"]).read(np.array([0]), {"v": np.empty((1, 512), np.float32)})


def test_a_layout_of_many_pages(tmp_path):
    values = np.random.default_rng(0).standard_normal((1500, 8192)).astype(np.float32)  # 48 MiB
    uri = str(tmp_path / "t.lance")
    table = lance.write_dataset(pa.table({"v": vectors(values)}), uri)
    found, rows = np.empty((9, 8192), np.float32), np.array([1499, 0, 255, 256, 257, 700, 701, 1023, 1024])
    assert DirectReader(table, uri, ["v"]).read(rows, {"v": found})
    assert np.array_equal(found, values[rows])
