"""What the serving bench runs on: a finished experiment behind uvicorn in this process, and many registered users."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import threading
import time
from dataclasses import replace
from typing import Any

import torch
import uvicorn
import world

from perpcs.population.tasks import get_task
from perpcs.records import Recipe, User
from perpcs.train.host import keep_freed_memory
from serve.api.application import build_api
from serve.config import AssembleConfig, load
from serve.host import Host
from serve.messages import Order
from serve.playground.world import world_of
from serve.recipes import Owner
from storage.layout import Paths
from storage.population import read_split, read_task

PROMPT = "description: a ship leaves the burning earth\nanswer:"
DEFAULTS = AssembleConfig()
RULES = (DEFAULTS.rule, "gradient_global", "gate")


class Service:
    """An engine with its HTTP server in threads of this process; nobody is asked for a token."""

    def __init__(self, experiment: str, folder: str, *settings: str) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        config = load(
            None,
            [
                f"experiment={experiment}", f"store.folder={folder}", "auth.open_on_loopback=true",
                "limits.requests_per_second=1000000", "limits.burst=1000000", "limits.concurrent=1000", *settings,
            ],
        )  # fmt: skip
        self.host = Host(config)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        made = uvicorn.Config(
            build_api(config, self.host), port=self.port, log_level="error", access_log=False
        )
        self._server = uvicorn.Server(made)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def close(self) -> None:
        """End the server, then the engine."""
        self._server.should_exit = True
        self._thread.join(10)
        self.host.close()

    def line(self) -> http.client.HTTPConnection:
        """A connection that stays open."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def answer(self, line: http.client.HTTPConnection, model: str, prompt: str) -> str:
        """One answer, alone."""
        body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0})
        line.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return str(json.loads(line.getresponse().read())["choices"][0]["text"])


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return world.machine() | {"threads": 1, "load_average_at_start": round(os.getloadavg()[0], 2)}


def people_of(experiment: str) -> tuple[User, ...]:
    """The targets: nobody in the pool."""
    return read_split(Paths.of(experiment).population, "targets")


def prompts_of(experiment: str, *, most: int = 200) -> tuple[str, ...]:
    """The targets' own questions, as the evaluation asks them."""
    task, wording = get_task(read_task(Paths.of(experiment).population)), world_of(experiment)
    inputs = dict.fromkeys(query.input for user in people_of(experiment) for query in user.queries)
    return tuple(f"{wording['before']}{task.variable(text)}{wording['after']}" for text in inputs)[:most]


def register(host: Host, experiment: str, users: int, *, varied: bool = False) -> int:
    """Recipes for u0 … of the tenant `dev`; how many different ones. varied: by several rules, so that there are three
    for each target; otherwise the targets' own, again and again under other names."""
    people = people_of(experiment)
    rules = RULES if varied else RULES[:1]
    models = [_recipe(host, person, rule, i) for rule in rules for i, person in enumerate(people)][:users]
    made = [replace(models[i % len(models)], user_id=Owner("dev", f"u{i}").id) for i in range(users)]
    host._recipes.store.put(made)
    return len({recipe.extra["version"] for recipe in models})


def order_of(owner: Owner, person: User, rule: str = DEFAULTS.rule) -> Order:
    """What a request without options asks for, or by another rule."""
    return Order(owner, person.known, rule, DEFAULTS.merge, DEFAULTS.top_k)


def _recipe(host: Host, person: User, rule: str, number: int) -> Recipe:
    owner = Owner("dev", f"made-{rule}-{number}")
    asyncio.run(host.assemble(order_of(owner, person, rule)))
    return host._recipe(owner)
