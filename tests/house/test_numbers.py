"""The tables of docs/performance.md say what the benches recorded."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_what_was_recorded():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = (ROOT / "docs" / "performance.md").read_text()
    assert {match[2] for match in tables.BLOCK.finditer(page)} == set(tables.TABLES)
    assert tables.filled(page) == page, "run python benchmarks/tables.py"
