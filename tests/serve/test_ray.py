"""The shipped deploy file on a real Ray cluster: deployed by Ray's own command, grown and shrunk by load, changed while it
runs, killed. The tests build on one another."""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BODY = {"model": "user:zoraqx", "prompt": "a ship leaves", "max_tokens": 8, "temperature": 0}
LONG = {
    "model": "user:zoraqx",
    "prompt": "a ship",
    "max_tokens": 256,
    "temperature": 1,
    "n": 8,
    "stream": True,
}
SECRET = "zebrafish on the staircase"


@pytest.fixture(scope="module")
def served(experiment, new_token, free_port, tmp_path_factory):
    """The application, deployed by `serve deploy`; an HTTP client with a token; `put` deploys a changed file."""
    import ray
    from ray import serve as ray_serve

    from serve.check import check_file

    folder = tmp_path_factory.mktemp("ray")
    everything = ("--scopes", "generate,assemble,metrics", "--rate", "10000", "--concurrent", "100")
    token = new_token(folder / "tokens.json", *everything)
    dashboard, port = free_port(), free_port()
    ray.init(
        address="local", num_cpus=4, include_dashboard=True, dashboard_port=dashboard, log_to_driver=False,
        object_store_memory=256 << 20, namespace="serve", _system_config={"metrics_report_interval_ms": 500},
    )  # fmt: skip
    tree = yaml.safe_load((ROOT / "configs/serve/deploy.yaml").read_text())
    tree["http_options"]["port"] = port
    (app,) = tree["applications"]
    del app["args"]["config"]
    app["args"] |= {
        "experiment": str(experiment.folder), "auth.tokens": str(folder / "tokens.json"),
        "store.folder": str(folder / "served"), "replicas.cpus": 0.5, "engine.slots": 4,
        "replicas.health_period_s": 1, "replicas.target_ongoing": 2, "replicas.upscale_s": 1,
        "replicas.downscale_s": 2, "engine.threads": 1,
    }  # fmt: skip
    file = folder / "deploy.yaml"
    file.write_text(yaml.safe_dump(tree))
    check_file(str(file))
    url = f"http://127.0.0.1:{dashboard}"
    command = [str(Path(sys.executable).parent / "serve"), "deploy", str(file), "-a", url]
    subprocess.run(command, check=True, capture_output=True, timeout=240)

    def put(changed):
        """What `serve deploy` does, without starting a program."""
        request = urllib.request.Request(
            f"{url}/api/serve/applications/", json.dumps(changed).encode(), method="PUT",
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        assert urllib.request.urlopen(request, timeout=60).status == 200

    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120) as http:
        until(lambda: running("Http") == running("Engine") == 1 and is_there(http))
        yield SimpleNamespace(http=http, folder=folder, tree=tree, put=put, token=token)
    ray_serve.shutdown()
    ray.shutdown()


def until(true, seconds=180.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)


def is_there(http):
    try:
        return http.get("/readyz").status_code == 200
    except httpx2.HTTPError:
        return False


def replicas(deployment):
    """state -> how many replicas."""
    from ray import serve as ray_serve

    app = ray_serve.status().applications.get("perpcs")
    found = app.deployments.get(deployment) if app else None
    return (
        {str(getattr(state, "value", state)): n for state, n in found.replica_states.items()} if found else {}
    )


def running(deployment):
    return replicas(deployment).get("RUNNING", 0)


def actors():
    """Names of the replicas' actors."""
    from ray.util import list_named_actors

    names = sorted(a["name"] for a in list_named_actors(all_namespaces=True) if "::perpcs#" in a["name"])
    assert names
    return names


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


@pytest.fixture(scope="module")
def una(served, history):
    """The answer that zoraqx's model gives."""
    made = served.http.put("/v1/users/zoraqx/assembly", json={"history": history(0), "rule": "gradient"})
    assert made.status_code == 200, made.text
    text = served.http.post("/v1/completions", json=BODY).json()["choices"][0]["text"]
    return SimpleNamespace(version=made.json()["version"], text=text)


def test_it_answers_and_streams(served, una):
    http = served.http
    assert http.get("/v1/models", headers={"Authorization": "Bearer x"}).status_code == 401
    with http.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == una.text


def test_refusals_are_answers_and_leave_no_trace_in_the_logs(served, una):
    http = served.http
    for body, status in (
        (BODY | {"model": "user:nobody"}, 404),
        (BODY | {"model": "user:nobody", "stream": True}, 404),
        (BODY | {"prompt": [10**6]}, 400),
        (BODY | {"prompt": f"{SECRET} " * 200}, 400),
        (BODY | {"prompt": SECRET}, 200),
    ):
        assert http.post("/v1/completions", json=body).status_code == status
    items = [{"description": SECRET, "tag": ""}]
    assert http.put("/v1/users/zoraqx/assembly", json={"history": items}).status_code == 400
    assert http.get("/v1/users/nobody/assembly").status_code == 404
    logs = replica_logs()
    assert logs, "the replicas' logs are where they are looked for"
    for path, text in logs.items():
        assert "Traceback" not in text, path
        assert SECRET not in text and "zoraqx" not in text and "nobody" not in text, path


def replica_logs():
    """Path -> text of what the replicas' processes have logged and printed."""
    import ray

    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    found = [*(folder / "serve").glob("replica_*"), *folder.glob("worker-*")]
    return {path: path.read_text(errors="replace") for path in found}


def test_metrics_of_all_replicas_in_one_page(served, una):
    def there():
        text = served.http.get("/metrics").text
        wanted = (
            "perpcs_serve_requests_total",
            "perpcs_serve_generated_tokens_total",
            'route="/v1/completions"',
        )
        return all(part in text for part in wanted)

    until(there)
    assert "zoraqx" not in served.http.get("/metrics").text


class Crowd:
    """Clients that stream one long answer after the other."""

    def __init__(self, served):
        self.http, self.ends, self.wanted = served.http, [], 8
        self.threads = [threading.Thread(target=self.work, args=(i,)) for i in range(self.wanted)]
        for thread in self.threads:
            thread.start()

    def work(self, number):
        try:
            while number < self.wanted:
                with self.http.stream("POST", "/v1/completions", json=LONG) as stream:
                    lines = [line for line in stream.iter_lines() if line]
                    self.ends.append((stream.status_code, lines[-1]))
        except httpx2.HTTPError as error:
            self.ends.append((0, repr(error)))

    def leave(self, wanted):
        self.wanted = wanted
        for thread in self.threads[wanted:]:
            thread.join(120)
            assert not thread.is_alive()


def test_load_adds_a_replica_and_no_stream_is_cut_when_it_goes(served, una):
    crowd = Crowd(served)
    try:
        until(lambda: running("Engine") == 2)
        crowd.leave(2)  # fewer than one replica is meant for, but never none: it goes while they stream
        until(lambda: replicas("Engine") == {"RUNNING": 1})
    finally:
        crowd.leave(0)
    assert len(crowd.ends) > 8 and set(crowd.ends) == {(200, "data: [DONE]")}


def test_limits_and_tokens_change_without_a_restart(served, una, new_token):
    http, before = served.http, actors()
    (app,) = served.tree["applications"]
    app["deployments"][0]["user_config"]["limits"]["max_tokens"] = 4
    served.put(served.tree)
    until(lambda: http.post("/v1/completions", json=BODY).status_code == 400)
    assert http.post("/v1/completions", json=BODY | {"max_tokens": 4}).status_code == 200
    del app["deployments"][0]["user_config"]["limits"]["max_tokens"]
    served.put(served.tree)
    until(lambda: http.post("/v1/completions", json=BODY).status_code == 200)
    late = new_token(served.folder / "tokens.json", "--scopes", "generate")
    assert http.get("/v1/models", headers={"Authorization": f"Bearer {late}"}).status_code == 200
    assert actors() == before


def test_the_recipe_outlives_a_replica(served, una):
    import ray

    http = served.http
    (engine,) = (name for name in actors() if "#Engine#" in name)
    ray.kill(ray.get_actor(engine, namespace="serve"))
    answer, statuses = until_answered(http)
    assert answer.json()["choices"][0]["text"] == una.text
    assert set(statuses) <= {200, 503}
    assert http.get("/v1/users/zoraqx/assembly").json()["version"] == una.version
    assert http.delete("/v1/users/zoraqx/assembly").status_code == 200
    assert http.post("/v1/completions", json=BODY).status_code == 404
