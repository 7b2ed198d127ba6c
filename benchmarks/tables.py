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


def less_training(result: Result) -> str:
    """Upper layers only, fewer steps, and starts, against the default training."""
    depth, first = result["sizes"]["depth"], result["rows"][0]
    rows = [
        [
            f"{r['layers']} of {depth}",
            "q, k, v, o, MLP" if r["mlp"] else "q, k, v, o",
            r["start"],
            r["steps"],
            f"{r['seconds']:.1f}",
            f"{r['times_reference']:.1f}",
            f"{r['accuracy']:.3f}",
            "–" if r is first else f"{100 * r['over_reference']:+.1f}".replace("-", "−"),
        ]
        for r in result["rows"]
    ]
    head = ["adapted layers", "targets", "start", "steps", "seconds", "× faster", "accuracy", "points"]
    return origin(result) + table(head, rows)


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


def serving(result: Result) -> str:
    """Throughput and first tokens, by clients and users that are asked for."""
    loads = result["loads"]
    rows = [
        [
            r["clients"], f"{r['users']:,}", f"{r['requests_per_s']:.0f}", f"{r['tokens_per_s']:.0f}",
            f"{r['first_token_ms']['p50']:.0f}", f"{r['first_token_ms']['p95']:.0f}",
            f"{r['adapters_read_per_request']:.2f}",
        ]
        for r in loads["loads"]
    ]  # fmt: skip
    head = [
        "clients",
        "users",
        "requests/s",
        "tokens/s",
        "first token: p50, ms",
        "p95",
        "adapters read per request",
    ]
    failed = sum(n for r in loads["loads"] for status, n in r["statuses"].items() if status != "200")
    http, kept = loads["http_overhead_ms"], loads["retention"]
    asked, registered = sum(r["requests"] for r in loads["loads"]), kept["registered"][1]
    said = (
        f"\n{asked:,} requests, {failed} failed. HTTP added {http['added_p50']:.1f} ms to the engine's "
        f"{http['engine']['p50']:.1f} ms for one token (p50). 5 users were answered at {kept['many_over_few']:.2f} of the "
        f"rate when {registered:,} were registered instead of 5.\n"
    )
    return origin(with_load(loads)) + table(head, rows) + said


def cold(result: Result) -> str:
    """From a history to a first token."""
    by_rule = result["loads"]["cold_path_ms"]
    first = next(iter(by_rule.values()))
    rows = [
        [name, *(f"{phases[name][p]:.1f}" for phases in by_rule.values() for p in ("p50", "p95"))]
        for name in first
        if name != "history_items"
    ]
    columns = [f"`{rule}` {p}" for rule in by_rule for p in ("p50", "p95")]
    return table([f"ms, {first['history_items']:.0f} history items", *columns], rows)


def serving_counts(result: Result) -> str:
    """Leaks, memory, a killed replica: what has been recorded."""
    lines = []
    if found := result.get("leaks"):
        apart = 100 * found["users_that_another_would_be_told_from"]
        lines.append(
            f"- Leaks: {found['requests']:,} requests of 32 clients for {found['users']} users ({found['recipes']} recipes) "
            f"and {found['prompts']} prompts, {found['evictions']:,} evictions meanwhile: "
            f"{found['different_from_alone']} answers differed from what that user gets alone. A mix-up of two users would "
            f"show in {apart:.0f} % of requests."
        )
    if found := result.get("memory"):
        held = found["resident_mib"]
        lines.append(
            f"- Memory: {found['minutes']:.0f} minutes, {found['requests']:,} requests for {found['users']:,} users and "
            f"{found['assemblies']} assemblies: {held['at_a_fifth']:,} MiB after a fifth, {held['end']:,} MiB at the end, "
            f"{found['mib_per_minute_after_a_fifth']:.1f} MiB a minute."
        )
    if found := result.get("failover"):
        lines.append(
            f"- A replica killed: of {found['requests']:,} requests of {found['clients']} clients, "
            f"{found['failed_first_tries']} failed at first (statuses {found['first_tries']}), all begun within "
            f"{found['they_began_within_s']} s of each other; sent again they ended {found['last_tries']}."
        )
    return "\n".join(lines or ["Not recorded yet."]) + "\n"


def with_load(part: Result) -> Result:
    """A part whose machine knows the load, as `origin` wants it."""
    return part | {"load_average_at_start": part["machine"]["load_average_at_start"]}


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "training": ("training", training),
    "training_cores": ("training", cores),
    "less_training": ("layers", less_training),
    "assembly": ("assembly", assembly),
    "pool_fetch": ("pool_fetch", fetch),
    "serving": ("serving", serving),
    "cold_path": ("serving", cold),
    "serving_counts": ("serving", serving_counts),
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
