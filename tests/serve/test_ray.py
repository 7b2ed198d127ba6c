"""The application under Ray Serve: HTTP, a stream, a replica that is killed, and what its death does not touch."""

import json
import os
import time
from types import SimpleNamespace

import httpx2
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(experiment, new_token, tmp_path_factory):
    """The application on a Ray of its own; an HTTP client with a token."""
    import ray
    from ray import serve as ray_serve

    from serve.app import build

    folder = tmp_path_factory.mktemp("ray")
    token = new_token(folder / "tokens.json", "--scopes", "generate,assemble,metrics")
    alone = not ray.is_initialized()
    if alone:
        ray.init(
            address="local", num_cpus=3, include_dashboard=False, object_store_memory=256 << 20,
            log_to_driver=False, namespace="serve",
        )  # fmt: skip
    port = 18000 + os.getpid() % 1000
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = {
        "experiment": str(experiment.folder), "auth.tokens": str(folder / "tokens.json"),
        "store.folder": str(folder / "served"), "replicas.cpus": 0.5, "engine.slots": 4,
        "replicas.health_period_s": 1,
    }  # fmt: skip
    ray_serve.run(build(settings), name="perpcs", route_prefix="/")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120) as http:
        yield SimpleNamespace(http=http, folder=folder)
    ray_serve.shutdown()
    if alone:
        ray.shutdown()


BODY = {"model": "user:una", "prompt": "a ship leaves", "max_tokens": 8, "temperature": 0}


def until_answered(http, seconds=120.0):
    """What a client that tries again gets, with the statuses on the way."""
    statuses, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        answer = http.post("/v1/completions", json=BODY)
        statuses.append(answer.status_code)
        if answer.status_code == 200:
            return answer, statuses
        time.sleep(0.5)
    raise AssertionError(statuses)


def test_it_answers_and_outlives_a_replica(served, history):
    http = served.http
    assert http.get("/readyz").json() == {"status": "ready"}
    assert http.get("/v1/models", headers={"Authorization": "Bearer x"}).status_code == 401
    made = http.put("/v1/users/una/assembly", json={"history": history(0), "rule": "gradient"})
    assert made.status_code == 200, made.text
    whole = http.post("/v1/completions", json=BODY).json()["choices"][0]["text"]
    with http.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == whole
    assert http.post("/v1/completions", json=BODY | {"model": "user:nobody"}).status_code == 404
    _kill_engine()
    answer, statuses = until_answered(http)
    assert answer.json()["choices"][0]["text"] == whole, "the recipe outlived the replica"
    assert set(statuses) <= {200, 503}
    assert http.get("/v1/users/una/assembly").json()["version"] == made.json()["version"]
    assert http.delete("/v1/users/una/assembly").status_code == 200
    assert http.post("/v1/completions", json=BODY).status_code == 404


def _kill_engine():
    import ray
    from ray.util import list_named_actors

    actors = [a for a in list_named_actors(all_namespaces=True) if "#Engine#" in a["name"]]
    ray.kill(ray.get_actor(actors[0]["name"], namespace=actors[0]["namespace"]))
