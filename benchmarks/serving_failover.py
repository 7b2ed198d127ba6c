"""The service under Ray Serve with two engine replicas, on a Ray of its own, and the death of one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

from serving_world import order_of, people_of


@contextlib.contextmanager
def served(experiment: str, folder: str) -> Iterator[tuple[int, str]]:
    """(port, token) of the service, with users u0 to u3 of the tenant `default`."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray import serve as ray_serve

    from serve.app import build

    tokens = Path(folder) / "tokens.json"
    settings = {
        "experiment": experiment, "auth.tokens": str(tokens), "store.folder": f"{folder}/served",
        "replicas.min": 2, "replicas.max": 2, "replicas.cpus": 0.5, "engine.threads": 1,
        "replicas.health_period_s": 1,
    }  # fmt: skip
    token, port = new_token(tokens), 20000 + random.randrange(9000)
    _register(experiment, settings, users=4)
    ray.init(
        address="local", num_cpus=3, include_dashboard=False, object_store_memory=256 << 20,
        log_to_driver=False, namespace="serve",
    )  # fmt: skip
    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        ray_serve.run(build(settings), name="perpcs", route_prefix="/")
        yield port, token
    finally:
        ray_serve.shutdown()
        ray.shutdown()


def new_token(tokens: Path) -> str:
    """A token that is never over its rate."""
    from serve.tokens import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main(["new", str(tokens), "--rate", "1000000", "--concurrent", "1000"]) == 0
    return out.getvalue().strip()


def kill_one() -> str:
    """SIGKILL to one engine replica's process; its name."""
    import ray
    from ray.util import list_named_actors

    actors = sorted(a["name"] for a in list_named_actors(all_namespaces=True) if "#Engine#" in a["name"])
    actor = ray.get_actor(actors[0], namespace="serve")
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    return actors[0].rpartition("#")[2]


def _register(experiment: str, settings: dict[str, object], *, users: int) -> None:
    """Recipes for the users, made here and put into the store that the replicas share."""
    from serve.config import load_args
    from serve.host import Host
    from serve.recipes import Owner

    host = Host(load_args(settings))
    for i, person in enumerate(people_of(experiment)[:users]):
        asyncio.run(host.assemble(order_of(Owner("default", f"u{i}"), person)))
    host.close()
