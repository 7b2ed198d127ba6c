"""The service under load, over loopback: throughput and time to first token by clients and registered users, what HTTP
adds to the engine, the phases from a history to a first token, and answers compared with those given alone (leaks).

The HTTP layer and the engine run in one process, clients in its threads, without Ray Serve's proxy. Greedy, short answers.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from serve.api.application import build_api
from serve.config import load
from serve.host import Host
from serve.messages import Ask, Order, Text
from serve.recipes import Owner
from storage.layout import Paths
from storage.population import read_split

RESULT = Path(__file__).parent / "results" / "serving.json"
PROMPT = "description: a ship leaves the burning earth\nanswer:"


def main() -> None:
    """Run and print; with --full also write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="runs/quickstart", help="a finished experiment; only read")
    parser.add_argument("--full", action="store_true", help="the recorded sizes; writes benchmarks/results/")
    parser.add_argument("--requests", type=int, default=0, help="per load; 0: 40, or 400 with --full")
    parser.add_argument("--leaks", type=int, default=0, help="requests of the leak run; 0: 100, or 10000")
    arguments = parser.parse_args()
    full = arguments.full
    requests = arguments.requests or (400 if full else 40)
    clients, users = ((1, 8, 32, 128), (1, 5, 100, 10_000)) if full else ((1, 8), (1, 20))
    with tempfile.TemporaryDirectory() as folder:
        host, url = start(arguments.experiment, folder)
        card = asyncio.run(host.card())
        result: dict[str, Any] = {"machine": machine(), "requests_per_load": requests}
        result["cold_path_seconds"] = cold_path(host, url, arguments.experiment, rounds=20 if full else 3)
        register(host, max(users))
        result["http_overhead_ms"] = overhead(host, url, card.name, rounds=200 if full else 20)
        result["loads"] = [load_of(url, c, u, requests) for u in users for c in clients]
        result["leaks"] = leaks(url, arguments.leaks or (10_000 if full else 100), min(max(users), 200))
        host.close()
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if full:
        RESULT.write_text(text)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"cpus": os.cpu_count(), "load_at_start": round(os.getloadavg()[0], 2), "date": today}


def start(experiment: str, folder: str) -> tuple[Host, str]:
    """A host with its HTTP server in threads of this process."""
    config = load(
        None,
        [
            f"experiment={experiment}", f"store.folder={folder}", "auth.open_on_loopback=true", "engine.slots=64",
            "limits.requests_per_second=1000000", "limits.burst=1000000", "limits.concurrent=1000",
        ],
    )  # fmt: skip
    host = Host(config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(build_api(config, host), port=port, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return host, f"http://127.0.0.1:{port}"


def register(host: Host, users: int) -> None:
    """Recipes for u0 … of the tenant `dev`: those of the warm-up's users again, under other names."""
    models = [host._recipe(Owner("dev", name)) for name in host._recipes.users("dev")]
    made = [replace(models[i % len(models)], user_id=Owner("dev", f"u{i}").id) for i in range(users)]
    host._recipes.store.put(made)


def cold_path(host: Host, url: str, experiment: str, *, rounds: int) -> dict[str, Any]:
    """From a history to the first token: assembly's phases, then the first answer of an adapter that is in no slot."""
    people = read_split(Paths.of(experiment).population, "targets")
    phases: dict[str, list[float]] = {}
    for i in range(rounds):
        owner, items = Owner("dev", f"cold{i}"), people[i % len(people)].known
        made = asyncio.run(host.assemble(Order(owner, items, "gradient_global", "concat", 3)))
        for phase, seconds in made["seconds"].items():
            phases.setdefault(phase, []).append(seconds)
        for phase in ("first answer, cold", "first answer, warm"):
            phases.setdefault(phase, []).append(first_token(url, f"user:{owner.user}")[0])
    return {phase: percentiles(values) for phase, values in phases.items()}


def first_token(url: str, model: str) -> tuple[float, float, int]:
    """(seconds to the first text, to the end, status) of one streamed answer."""
    started = time.perf_counter()
    first = 0.0
    body = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stream": True}
    with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        for line in answer.iter_lines():
            if line and not first:
                first = time.perf_counter() - started
    return first, time.perf_counter() - started, answer.status_code


def overhead(host: Host, url: str, base: str, *, rounds: int) -> dict[str, Any]:
    """One token over HTTP and from the engine's own interface, in turn."""

    async def bare() -> None:
        async for _ in host.generate(Ask((Text(PROMPT),), max_tokens=1)):
            pass

    body = {"model": base, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    times: dict[str, list[float]] = {"http": [], "engine": []}
    with httpx2.Client(base_url=url, timeout=60) as http:
        for _ in range(rounds):
            started = time.perf_counter()
            http.post("/v1/completions", json=body).raise_for_status()
            times["http"].append(1000 * (time.perf_counter() - started))
            started = time.perf_counter()
            asyncio.run(bare())
            times["engine"].append(1000 * (time.perf_counter() - started))
    return {name: percentiles(values) for name, values in times.items()}


def load_of(url: str, clients: int, users: int, requests: int) -> dict[str, Any]:
    """`clients` at once, each asking for a random user's model until all requests are done."""
    draw = random.Random(clients * users)
    models = [f"user:u{draw.randrange(users)}" for _ in range(max(requests, clients * 4))]
    found: list[tuple[float, float, int]] = []

    def work() -> None:
        while models:
            try:
                model = models.pop()
            except IndexError:
                return
            found.append(first_token(url, model))

    count, started = len(models), time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    return {
        "clients": clients, "users": users, "requests_per_s": round(count / seconds, 2),
        "first_token_s": percentiles([first for first, _, _ in found]),
        "statuses": {str(s): sum(status == s for *_, status in found) for s in {status for *_, status in found}},
    }  # fmt: skip


def leaks(url: str, requests: int, users: int) -> dict[str, Any]:
    """Answers in a crowd against those given alone."""
    with httpx2.Client(base_url=url, timeout=120) as http:

        def answer(user: int) -> str:
            body = {"model": f"user:u{user}", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
            return str(http.post("/v1/completions", json=body).json()["choices"][0]["text"])

        alone = [answer(user) for user in range(users)]
        wrong: list[int] = []

        def work(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(requests // 16):
                user = draw.randrange(users)
                if answer(user) != alone[user]:
                    wrong.append(user)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {"requests": requests // 16 * 16, "different_from_alone": len(wrong), "texts": len(set(alone))}


def percentiles(values: list[float]) -> dict[str, float]:
    """p50 and p95."""
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 5),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 5),
    }


if __name__ == "__main__":
    main()
