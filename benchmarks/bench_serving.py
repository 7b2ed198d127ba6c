"""The service under load, over loopback. Answers are greedy and short, as the quickstart's task has them.

    loads      throughput and time to first token by clients and registered users; what 10,000 registered users cost the
               requests of 5; what HTTP adds to the engine; the phases from a history to a first token
    memory     ten minutes of mixed traffic with assemblies: resident memory
    leaks      10,000 requests for random users and prompts in a crowd, each compared with what that user gets alone
    failover   under Ray Serve: one of two engine replicas is killed while 16 clients are answered

Clients are a process of their own. In `loads`, `memory` and `leaks` the HTTP layer and the engine are one process under
uvicorn, without Ray Serve's proxy; the engine has one torch thread.

As recorded, after `make quickstart`, about 20 minutes on two cores (loads 5, memory 10, leaks 3, failover 1):

    python benchmarks/bench_serving.py --full

`--part loads --full` measures times and wants a quiet machine; the other parts give counts and bytes. Each part replaces
its own entry in benchmarks/results/serving.json. Without --full: small, about a minute, nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import serving_failover
from serving_clients import Plan
from serving_world import PROMPT, RULES, Service, machine, order_of, people_of, prompts_of, register

from perpcs.generate.requests import Request
from serve.host import Host
from serve.recipes import Owner

RESULT = Path(__file__).parent / "results" / "serving.json"
CLIENTS, USERS = (1, 8, 32, 128), (1, 100, 10_000)
Json = dict[str, Any]


def main() -> None:
    """Run and print; with --full also write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", default="runs/quickstart", help="a finished experiment; only read")
    parser.add_argument("--full", action="store_true", help="the recorded sizes; writes benchmarks/results/")
    parser.add_argument(
        "--part", choices=sorted(PARTS), action="append", help="only this one; may be repeated"
    )
    arguments = parser.parse_args()
    experiment = str(Path(arguments.experiment).resolve())
    for name in arguments.part or PARTS:
        found = {"machine": machine()} | PARTS[name](experiment, arguments.full)
        print(f"{name}: {json.dumps(found, indent=2)}", flush=True)
        if arguments.full:
            recorded = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            RESULT.write_text(json.dumps({**recorded, name: found}, indent=2) + "\n")


def loads(experiment: str, full: bool) -> Json:
    """Throughput, first tokens, retention, overhead, cold path."""
    seconds, rounds = (10.0, 200) if full else (2.0, 20)
    clients, users = (CLIENTS, USERS) if full else ((1, 8), (1, 20))
    prompts = prompts_of(experiment)
    found: Json = {"seconds_per_load": seconds}
    with ExitStack() as opened, tempfile.TemporaryDirectory() as folder:
        few, many = (opened.enter_context(closing(Service(experiment, f"{folder}/{n}"))) for n in (0, 1))
        register(few.host, experiment, 5)
        rounds_cold = 40 if full else 3
        found["cold_path_ms"] = {
            rule: cold_path(many.host, experiment, rule, rounds=rounds_cold)
            for rule in (RULES[0], "gradient_global")
        }
        register(many.host, experiment, max(users))
        found["http_overhead_ms"] = overhead(many, rounds=rounds)
        found["loads"] = [load(many, Plan(many.port, c, u, prompts, seconds)) for u in users for c in clients]
        found["retention"] = retention(few, many, prompts, seconds=seconds, users=max(users))
    return found


def load(service: Service, plan: Plan) -> Json:
    """One crowd; the first second warms up and is left out."""
    run_clients(Plan(**asdict(plan) | {"seconds": 1.0, "seed": 1}))
    before = service.host.engine.stats()
    seconds, seen = run_clients(plan)
    after = service.host.engine.stats()
    asked = after.slot_hits + after.slot_misses - before.slot_hits - before.slot_misses
    return {
        "clients": plan.clients, "users": plan.users, "requests": len(seen),
        "requests_per_s": round(len(seen) / seconds, 1),
        "tokens_per_s": round((after.tokens - before.tokens) / seconds, 1),
        "first_token_ms": percentiles([1e3 * s["first"] for s in seen]),
        "whole_ms": percentiles([1e3 * s["whole"] for s in seen]),
        "adapters_read_per_request": round((after.slot_misses - before.slot_misses) / max(asked, 1), 3),
        "statuses": statuses(seen),
    }  # fmt: skip


def retention(few: Service, many: Service, prompts: tuple[str, ...], *, seconds: float, users: int) -> Json:
    """The same traffic, to the same 5 users, where 5 are registered and where very many are; in turn, five times."""
    rates: dict[str, list[float]] = {"few": [], "many": []}
    for turn in range(6):
        for name, service in (("few", few), ("many", many)):
            took, seen = run_clients(Plan(service.port, 32, 5, prompts, seconds / 2, seed=turn))
            if turn:  # the first turn warms up
                rates[name].append(len(seen) / took)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "clients": 32, "asked": 5, "registered": [5, users],
        "requests_per_s": {name: [round(v, 1) for v in values] for name, values in rates.items()},
        "many_over_few": round(medians["many"] / medians["few"], 3),
    }  # fmt: skip


def overhead(service: Service, *, rounds: int) -> Json:
    """One token over HTTP, and from the engine itself with the prompt's tokens at hand; in turn."""
    host, times = service.host, {"http": [], "engine": []}
    body = {"model": asyncio.run(host.card()).name, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    ids = host._reader._plain(PROMPT)
    with closing(service.line()) as line:
        for _ in range(rounds):
            started = time.perf_counter()
            line.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            line.getresponse().read()
            times["http"].append(1e3 * (time.perf_counter() - started))
            started = time.perf_counter()
            host.engine.submit(Request(ids, max_new=1)).result()
            times["engine"].append(1e3 * (time.perf_counter() - started))
    added = statistics.median(times["http"]) - statistics.median(times["engine"])
    return {name: percentiles(values) for name, values in times.items()} | {"added_p50": round(added, 2)}


def cold_path(host: Host, experiment: str, rule: str, *, rounds: int) -> Json:
    """From a history to the first token, by phases: assembly, the recipe read back, the pieces read and merged, the
    first token; then a second request, whose adapter is in its slot."""
    people, phases = people_of(experiment), dict[str, list[float]]()
    read = host._adapter_of

    def timed(slot: str) -> Any:
        started = time.perf_counter()
        try:
            return read(slot)
        finally:
            phases.setdefault("recipe and pieces", []).append(time.perf_counter() - started)

    host.engine._adapter_of = timed
    for i in range(rounds):
        owner = Owner("dev", f"cold-{rule}-{i}")
        made = asyncio.run(host.assemble(order_of(owner, people[i % len(people)], rule)))
        for phase, seconds in made["seconds"].items():
            phases.setdefault(f"assembly: {phase}", []).append(seconds)
        for name in ("first answer, cold", "first answer, warm"):
            started = time.perf_counter()
            request = Request(host._reader._plain(PROMPT), user=host._slot_name(owner), max_new=1)
            host.engine.submit(request).result()
            phases.setdefault(name, []).append(time.perf_counter() - started)
    host.engine._adapter_of = read
    whole = [
        sum(parts) for parts in zip(*(v for k, v in phases.items() if k.startswith("assembly")), strict=True)
    ]
    whole = [a + b for a, b in zip(whole, phases["first answer, cold"], strict=True)]
    everything = phases | {"history to first token": whole}
    items = sum(len(people[i % len(people)].known) for i in range(rounds)) / rounds
    return {"history_items": round(items, 1)} | {
        name: percentiles([1e3 * v for v in values]) for name, values in everything.items()
    }


def memory(experiment: str, full: bool) -> Json:
    """Resident memory of the service while 8 clients ask for 10,000 users and histories keep coming."""
    minutes, users = (10.0, 10_000) if full else (0.5, 100)
    people, held = people_of(experiment), []
    with tempfile.TemporaryDirectory() as folder, closing(Service(experiment, folder)) as service:
        register(service.host, experiment, users)
        plan = Plan(service.port, 8, users, prompts_of(experiment), 60 * minutes)
        crowd, started, assembled = start_clients(plan), time.monotonic(), 0
        while crowd.poll() is None and time.monotonic() - started < 60 * minutes:
            owner = Owner("dev", f"w{assembled % 50}")
            asyncio.run(service.host.assemble(order_of(owner, people[assembled % len(people)])))
            assembled += 1
            held.append((time.monotonic() - started, resident()))
            time.sleep(1)
        _, seen = ended(crowd)
    # The first fifth fills caches.
    settled = [(at, size) for at, size in held if at > 60 * minutes / 5]
    slope = statistics.linear_regression(*zip(*settled, strict=True)).slope
    return {
        "minutes": minutes, "users": users, "requests": len(seen), "assemblies": assembled,
        "statuses": statuses(seen),
        "resident_mib": {"at_a_fifth": round(settled[0][1]), "end": round(settled[-1][1]),
                         "most": round(max(size for _, size in held))},
        "mib_per_minute_after_a_fifth": round(60 * slope, 2),
    }  # fmt: skip


def leaks(experiment: str, full: bool) -> Json:
    """Every user is asked every prompt alone, one request at a time; then the same in a crowd, with slots for a third
    of the users."""
    users, requests = (48, 10_240) if full else (6, 100)
    prompts = prompts_of(experiment, most=40 if full else 5)
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        service = opened.enter_context(closing(Service(experiment, folder, f"engine.slots={users // 3}")))
        kinds = register(service.host, experiment, users, varied=True)
        alone: dict[tuple[int, int], str] = {}
        with closing(service.line()) as line:
            for user in range(users):
                for prompt, text in enumerate(prompts):
                    alone[user, prompt] = service.answer(line, f"user:u{user}", text)
        before = service.host.engine.stats()
        plan = Plan(service.port, 32, users, prompts, requests=requests, stream=False, keep=True)
        _, seen = run_clients(plan)
        after = service.host.engine.stats()
    wrong = [s for s in seen if s["text"] != alone[s["user"], s["prompt"]]]
    return {
        "requests": len(seen), "users": users, "recipes": kinds, "prompts": len(prompts),
        "different_answers_among_them": len(set(alone.values())),
        "users_that_another_would_be_told_from": told_apart(alone, users, len(prompts)),
        "evictions": after.evictions - before.evictions, "statuses": statuses(seen),
        "different_from_alone": len(wrong),
    }  # fmt: skip


def told_apart(alone: dict[tuple[int, int], str], users: int, prompts: int) -> float:
    """Share of (user, other user, prompt) whose answers differ: how often a mix-up of two would show in one request."""
    draw, shown, pairs = random.Random(0), 0, 20_000
    for _ in range(pairs):
        a, b = draw.sample(range(users), 2)
        prompt = draw.randrange(prompts)
        shown += alone[a, prompt] != alone[b, prompt]
    return round(shown / pairs, 3)


def failover(experiment: str, full: bool) -> Json:
    """See `serving_failover`."""
    seconds = 25.0 if full else 12.0
    with (
        tempfile.TemporaryDirectory() as folder,
        serving_failover.served(experiment, folder) as (port, token),
    ):
        plan = Plan(port, 16, 4, prompts_of(experiment), seconds, token=token, tries=6)
        crowd = start_clients(plan)
        time.sleep(seconds / 3)
        killed = serving_failover.kill_one()
        _, seen = ended(crowd)
    failed = [s for s in seen if s["statuses"][0] != 200]
    return {
        "clients": 16, "seconds": seconds, "requests": len(seen), "replica_killed": killed,
        "first_tries": statuses(seen, which=0), "last_tries": statuses(seen),
        "failed_first_tries": len(failed),
        "they_began_within_s": round(max(s["at"] for s in failed) - min(s["at"] for s in failed), 2) if failed else 0,
        "most_tries": max(len(s["statuses"]) for s in seen),
    }  # fmt: skip


PARTS: dict[str, Callable[[str, bool], Json]] = {
    "loads": loads, "memory": memory, "leaks": leaks, "failover": failover
}  # fmt: skip


def start_clients(plan: Plan) -> subprocess.Popen[bytes]:
    """The clients' process, under way."""
    program = [sys.executable, str(Path(__file__).parent / "serving_clients.py")]
    crowd = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert crowd.stdin
    crowd.stdin.write(json.dumps(asdict(plan)).encode())
    crowd.stdin.close()
    crowd.stdin = None
    return crowd


def ended(crowd: subprocess.Popen[bytes]) -> tuple[float, list[Json]]:
    """(seconds, what each request saw)."""
    out, _ = crowd.communicate()
    made = json.loads(out)
    return made["seconds"], made["seen"]


def run_clients(plan: Plan) -> tuple[float, list[Json]]:
    """A crowd from beginning to end."""
    return ended(start_clients(plan))


def statuses(seen: list[Json], *, which: int = -1) -> dict[str, int]:
    """How many requests ended (or, with 0, began) with each status."""
    every = [s["statuses"][which] for s in seen]
    return {str(status): every.count(status) for status in sorted(set(every))}


def percentiles(values: list[float]) -> dict[str, float]:
    """p50 and p95."""
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 2),
    }


def resident() -> float:
    """MiB of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
