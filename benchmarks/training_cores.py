"""All cores of the machine at once: packs as the jobs run them against PEFT as its user runs it. Part of bench_training.py.

The jobs start one worker process per core with one thread each. A loop over PEFT is one process with a thread per core;
whoever cares starts one per core. Every process loads the base once and waits for its turn; a contestant's processes
start together, and its time is until the last is done.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import torch

from perpcs.config.schema import TrainConfig

STEPS = {"peft": 20, "pack": 5}
"""Timed steps of a process in a round."""
PACK = 16


def serve(link: Connection, threads: int) -> None:
    """A process: loads everything, then trains what it is asked to, (kind, number), until the other end is closed."""
    import bench_training as bench
    import world

    torch.set_num_threads(threads)
    bench.keep_freed_memory()
    people = world.population()
    base, plain = world.tiny_base(people), bench.unbanked(world.tiny_base(people).model)
    users = world.training_data(base, people.candidates)
    link.send("ready")
    while True:
        try:
            kind, number = link.recv()
        except EOFError:
            return
        config = TrainConfig(steps=STEPS[kind])
        if kind == "peft":
            bench.peft_user(plain, users[number % len(users)], config)
        else:
            bench.pack(base, users[number % 4 * PACK : (number % 4 + 1) * PACK], config)
        link.send("done")


def measure_cores(cores: int, *, rounds: int) -> dict[str, Any]:
    """Users an hour by contestant, medians over the rounds; the first round warms up."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as open_links:
        one = [_start(context, open_links, cores)]
        each = [_start(context, open_links, 1) for _ in range(cores)]
        contestants = {
            f"PEFT, 1 process of {cores} threads": ("peft", one),
            f"PEFT, {cores} processes of 1 thread": ("peft", each),
            f"packs of {PACK}, 1 process of {cores} threads": ("pack", one),
            f"packs of {PACK}, {cores} processes of 1 thread": ("pack", each),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds + 1):
            for name, (kind, links) in contestants.items():
                took = _round(kind, links, number)
                if number:
                    seconds[name].append(took)
    return {"cores": cores, "rows": _rows(seconds)}


def _start(context: Any, open_links: ExitStack, threads: int) -> Connection:
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, threads), daemon=True)
    process.start()
    there.close()
    open_links.callback(process.join)
    open_links.callback(here.close)  # first: it ends the process
    assert here.recv() == "ready"
    return here


def _round(kind: str, links: Sequence[Connection], number: int) -> float:
    """Wall seconds per user and step of all processes together."""
    start = time.perf_counter()
    for i, link in enumerate(links):
        link.send((kind, number * len(links) + i))
    for link in links:
        link.recv()
    made = STEPS[kind] * len(links) * (PACK if kind == "pack" else 1)
    return (time.perf_counter() - start) / made


def _rows(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    loop, processes = list(seconds.values())[:2]
    return {
        name: {
            "users_per_hour": round(3600 / (statistics.median(values) * TrainConfig().steps)),
            "times_peft_loop": _times(loop, values),
            "times_peft_processes": _times(processes, values),
        }
        for name, values in seconds.items()
    }


def _times(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return round(statistics.median(t / o for t, o in zip(theirs, ours, strict=True)), 2)
