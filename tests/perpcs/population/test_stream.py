"""A JSON list entry by entry: the same values as all at once, whatever the window, and memory for an entry."""

import gzip
import json
import tracemalloc

import pytest

from perpcs.errors import DataError
from perpcs.population import stream
from perpcs.population.stream import read_entries

VALUES = [
    {"id": 1, "text": 'brackets ] } and a quote " inside', "deep": [[{"a": [1, 2.5, None]}]]},
    [], {}, "häuser und ein langer text " * 5, 12345678, -1.5e-7, True, None, {"big": "x" * 300},
]  # fmt: skip


@pytest.mark.parametrize("window", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_same_values_whatever_the_window(tmp_path, monkeypatch, window, indent):
    monkeypatch.setattr(stream, "CHUNK", window)
    text = "\ufeff \n" + json.dumps(VALUES, indent=indent, ensure_ascii=False) + "\n"
    plain, packed = tmp_path / "x.json", tmp_path / "x.json.gz"
    plain.write_text(text, "utf-8")
    packed.write_bytes(gzip.compress(text.encode()))
    assert list(read_entries(plain)) == list(read_entries(packed)) == VALUES
    plain.write_text("[ ]")
    assert list(read_entries(plain)) == []


@pytest.mark.parametrize("window", [3, 1 << 20])
@pytest.mark.parametrize(
    "text",
    ['[{"a": 1},\n {"b": 2}', "[1,\n 2 3]", "[1, ]", '[1,\n{"a" 2}, 3]', "[1] 2", '["\nx"]', "[tru]", ""],
)
def test_damage_is_told_where_the_library_sees_it(tmp_path, monkeypatch, text, window):
    monkeypatch.setattr(stream, "CHUNK", window)
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(json.JSONDecodeError) as wanted:
        json.loads(text)
    with pytest.raises(
        DataError, match=rf"x\.json: truncated or malformed JSON at line {wanted.value.lineno} "
    ):
        list(read_entries(path))


def test_bytes_that_are_no_text_are_told_by_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 4)
    path = tmp_path / "x.json"
    path.write_bytes(b'["abcdefgh", "\xff"]')
    with pytest.raises(DataError, match="not UTF-8 at byte 14;"):
        list(read_entries(path))


def test_memory_is_that_of_an_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 1 << 14)
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"n": n, "text": "x" * 1000} for n in range(4000)]))
    tracemalloc.start()
    count = sum(1 for _ in read_entries(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4000 and peak < path.stat().st_size / 8
