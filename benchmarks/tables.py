"""Puts recorded results into docs/performance.md: `python benchmarks/tables.py` after a bench has written its JSON.

The page's tables stand between `<!-- numbers: NAME -->` and `<!-- end -->`; a test holds them against the JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- numbers: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Result = dict[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, first column left, others right."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def origin(result: Result) -> str:
    """Where and when, in one line."""
    machine = result["machine"]
    load = result.get("load_average_at_start", machine.get("load_at_start", machine.get("load_at_end")))
    threads = machine.get("threads", machine.get("cores"))
    return f"{machine['cpu']}, {threads} threads, load average {load}, {machine['date']}.\n\n"


def training(result: Result) -> str:
    """Packs against PEFT."""
    rows = [
        [name, f"{r['tokens_per_second']:,}", f"{r['users_per_hour']:,}", f"{r['times_peft']:.2f}"]
        for name, r in result["throughput"].items()
    ]
    equal, floor = result["equal_loss"], result["floor"]
    best = min(r["seconds_per_user_step"] for r in result["throughput"].values())
    per_step, rate = floor["seconds_per_user_step"], floor["matmul_flops_per_second"] / 1e9
    apart = max(equal["largest_difference"], 1e-6)
    same = (
        f"{equal['users']} users to the end of {equal['steps']} steps: mean final loss {equal['final_loss_pack']:.5f} "
        f"in a pack, {equal['final_loss_peft']:.5f} by PEFT, largest difference below {apart:.0e}.\n"
    )
    bound = (
        f"Floor: {floor['flops_per_user_step'] / 1e9:.2f} GFLOP a user and step, {1e3 * per_step:.1f} ms at the rate of "
        f"one large matrix product ({rate:.0f} GFLOP/s); the best pack takes {1e3 * best:.1f} ms, "
        f"{best / per_step:.1f} times the floor.\n"
    )
    return f"{origin(result)}{table(['', 'tokens/s', 'users/hour', '× PEFT'], rows)}\n{same}{bound}"


def cores(result: Result) -> str:
    """Packs as the jobs run them against PEFT, on all cores."""
    if "all_cores" not in result:
        return "Not recorded yet.\n"
    rows = [
        [name, f"{r['users_per_hour']:,}", f"{r['times_peft_loop']:.2f}", f"{r['times_peft_processes']:.2f}"]
        for name, r in result["all_cores"]["rows"].items()
    ]
    return table(["", "users/hour", "× PEFT's loop", "× PEFT's processes"], rows)


def upper(result: Result) -> str:
    """Adapting only the upper layers."""
    rows = [
        [f"{r['layers']} of 4", r["seconds"], f"{r['times_all_layers']:.2f}", f"{r['accuracy']:.3f}"]
        for r in result["upper_layers"]
    ]
    return table(["adapted layers", "seconds", "× all layers", "accuracy"], rows)


def warm(result: Result) -> str:
    """Starting from the assembly."""
    rows = result["warm_start"]
    cold = {r["steps"]: r for r in rows if r["start"] == "zero"}
    return table(
        ["steps", "from zero", "from the assembly"],
        [
            [
                r["steps"],
                f"{cold[r['steps']]['accuracy']:.3f}" if r["steps"] in cold else "–",
                f"{r['accuracy']:.3f}",
            ]
            for r in rows
            if r["start"] == "assembly"
        ],
    )


def assembly(result: Result) -> str:
    """Every rule over a plain forward, by hidden size."""
    shapes = {s["sizes"]["hidden"]: s["rules"] for s in result["shapes"]}
    head = ["", *[f"hidden {h:,}: ms" for h in shapes], *[f"{h:,}: × forward" for h in shapes],
            *[f"{h:,}: papers' over it" for h in shapes]]  # fmt: skip
    rows = [
        [
            name,
            *[f"{1e3 * rules[name]['seconds_per_target']:,.0f}" for rules in shapes.values()],
            *[f"{rules[name]['over_forward']:.2f}" for rules in shapes.values()],
            *[f"{rules[name]['paper_over_this']:.1f}" for rules in shapes.values()],
        ]
        for name in next(iter(shapes.values()))
    ]
    return origin(result | {"load_average_at_start": result["shapes"][0]["load_average_at_start"]}) + table(
        head, rows
    )


def fetch(result: Result) -> str:
    """384 scattered pieces of a 7B shape."""
    rows = [
        [
            name.replace("_", ", ").replace(", ms", ""),
            *[f"{result[d][name]:,.0f}" for d in ("float32", "float16")],
        ]
        for name in result["float32"]
        if name.endswith("_ms")
    ]
    return origin(result) + table(["milliseconds", "float32", "float16"], rows)


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "training": ("training", training),
    "training_cores": ("training", cores),
    "upper_layers": ("training", upper),
    "warm_start": ("training", warm),
    "assembly": ("assembly", assembly),
    "pool_fetch": ("pool_fetch", fetch),
}


def filled(page: str) -> str:
    """The page with every table made anew from the recorded results."""

    def put(match: re.Match[str]) -> str:
        source, make = TABLES[match[2]]
        result = json.loads((ROOT / "benchmarks" / "results" / f"{source}.json").read_text())
        return f"{match[1]}{make(result)}{match[3]}"

    return BLOCK.sub(put, page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
