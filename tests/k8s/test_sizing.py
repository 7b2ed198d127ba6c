"""The sizes that the operations page states are those of the arithmetic over the recorded benches."""

from k8s.check.render import ROOT
from k8s.sizing import LLAMA_7B, MEASURED, Plan, size, table


def test_the_page_has_the_table():
    assert table() in (ROOT / "docs" / "operations.md").read_text()


def test_the_page_on_scaling_has_its_row():
    assert table((Plan(users=1_000_000, sharers=100_000),)) in (ROOT / "docs" / "scaling.md").read_text()


def test_bytes_are_those_of_the_bench():
    import json

    found = json.loads((MEASURED / "pool_bytes.json").read_text())
    assert LLAMA_7B.adapter_numbers(found["rank"]) * 2 == found["float16"]["raw_factor_bytes"]
    assert round(Plan(users=1, sharers=1).pool_bytes) == found["float16"]["stored_bytes"]
    assert Plan(users=1000, sharers=1).recipe_bytes == 1000 * found["recipes"]["table_bytes_per_target"]


def test_hours_are_operations_over_the_rate():
    plan = Plan(users=10, sharers=2, steps=10, gate_steps=0, batch=1, item_tokens=100, teraflops=1.0)
    flops = 10 * 1 * 100 * 4 * LLAMA_7B.parameters
    assert abs(plan.sharer_hours - 2 * flops / 1e12 / 3600) < 1e-9
    assert abs(plan.own_hours - 10 * flops / 1e12 / 3600) < 1e-9


def test_sizes_are_readable():
    assert [size(v) for v in (1183.5, 905.4e6, 18.1e9, 1.677e12)] == [
        "1.18 KB",
        "905 MB",
        "18.1 GB",
        "1.68 TB",
    ]
