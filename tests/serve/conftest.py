"""A served experiment that is made in seconds: an untrained base, and a pool of random pieces loud enough to change
every answer. Store, indexes, engine and HTTP are the real ones."""

import contextlib
import dataclasses
import io
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

TENANTS = ("acme", "other")


@pytest.fixture(scope="session")
def experiment(tmp_path_factory):
    """The folder of a finished experiment; tests give their service a store and tokens of its own."""
    from perpcs.config import ExperimentConfig, to_yaml
    from perpcs.config.schema import LoraConfig, PoolConfig, PromptConfig, SyntheticConfig, TinyConfig
    from perpcs.model.base import load_base, save_base
    from perpcs.model.tiny import new_llama, train_tokenizer
    from perpcs.population.synthetic import synthetic_population
    from perpcs.records import PoolSpec
    from storage.layout import Paths
    from storage.pool import Pool
    from storage.population import write_population

    folder = tmp_path_factory.mktemp("served") / "mini"
    paths = Paths.of(str(folder))
    folder.mkdir()
    made = SyntheticConfig(archetypes=2, base_users=6, candidates=2, targets=6, history=8, queries=4)
    tiny = TinyConfig(hidden=32, layers=2, vocab=400)
    people = synthetic_population(made, seed=0)
    texts = [item.get("description") for user in people.base for item in user.history]
    tokenizer = train_tokenizer([*texts, *people.base[0].history[0].get("tag")], vocab=tiny.vocab)
    prompt = PromptConfig(max_length=96)
    cfg = ExperimentConfig(
        experiment=str(folder), prompt=prompt, lora=LoraConfig(rank=4, alpha=4.0), pool=PoolConfig(sketch=4)
    )
    model = new_llama(tiny, tokenizer, max_length=512, seed=0)
    save_base(model, tokenizer, folder / "base")
    base = load_base(folder / "base", dtype="float32", device="cpu", targets=cfg.lora.targets)
    write_population(paths.population, people)
    projections = base.model.projections
    spec = PoolSpec(base.fingerprint, 4, 4.0, projections, sketch=4, gates=True, history_dim=32)
    pool = Pool.create(paths.pool, spec=spec)
    pool.commit([_sharer(f"sharer{i}", spec) for i in range(6)])
    pool.commit([_sharer("others-own", spec)], tenant="other")
    (folder / "config.yaml").write_text(to_yaml(cfg))
    return SimpleNamespace(folder=folder, paths=paths, people=people)


def _sharer(user_id, spec):
    from perpcs.records import Piece, SharerAdapter

    draw = np.random.default_rng([3, *user_id.encode()])

    def normal(*shape):
        return draw.standard_normal(shape).astype(np.float32)

    pieces = {
        p.name: Piece(
            normal(spec.rank, p.d_in) * 0.6, normal(p.d_out, spec.rank) * 0.6, normal(p.d_in),
            normal(spec.sketch**2), 1.0,
        )
        for p in spec.projections
    }  # fmt: skip
    key = normal(spec.history_dim)
    return SharerAdapter(user_id, spec.rank, spec.alpha, pieces, key / np.linalg.norm(key), 8, 8, 0.1, 0)


@pytest.fixture(scope="session")
def new_token():
    """new_token(file, "--tenant", "acme", …): the token, as the command prints it."""
    from serve.tokens import main

    def new_token(path, *arguments):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            assert main(["new", str(path), *arguments]) == 0
        return out.getvalue().strip()

    return new_token


@pytest.fixture(scope="session")
def open_service(experiment, new_token, tmp_path_factory):
    """open_service("key=value", …): a host with its application, tokens and folder; closed at the end."""
    from serve.api.application import build_api
    from serve.config import load
    from serve.host import Host

    hosts = []

    def open_service(*settings):
        folder = tmp_path_factory.mktemp("service")
        tokens = folder / "tokens.json"
        everything = "generate,assemble,admin,metrics"
        made = {name: new_token(tokens, "--tenant", name, "--scopes", everything) for name in TENANTS}
        config = load(
            None,
            [
                f"experiment={experiment.folder}", f"auth.tokens={tokens}", f"store.folder={folder}/served",
                "engine.slots=3", "engine.requests=8", "store.poll_s=0.1", "limits.requests_per_second=10000",
                "limits.burst=10000", "limits.concurrent=100", "engine.threads=1", *settings,
            ],
        )  # fmt: skip
        host = Host(config)
        hosts.append(host)
        return SimpleNamespace(
            host=host, app=build_api(config, host), tokens=tokens, made=made, config=config,
            store=folder / "served", folder=folder,
        )  # fmt: skip

    yield open_service
    for host in hosts:
        host.close()


@pytest.fixture(scope="session")
def service(open_service):
    """One that tests share; each takes users of its own."""
    return open_service()


@pytest.fixture(scope="session")
def client(service):
    """An HTTP client with a token for all of the tenant `acme`."""
    from fastapi.testclient import TestClient

    with TestClient(service.app, raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {service.made['acme']}"
        yield client


@pytest.fixture(scope="session")
def history(experiment):
    """history(i): the i-th target's past items, as a request has them."""
    return lambda i: [dict(item.fields) for item in experiment.people.targets[i].history]


@pytest.fixture(scope="session")
def free_port():
    """free_port(): a port that nobody listens on."""

    def free_port():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return free.getsockname()[1]

    return free_port


@pytest.fixture(scope="session")
def serve_http(free_port):
    """serve_http(app): the address of a uvicorn server over it, in a thread."""
    import uvicorn

    servers = []

    def serve_http(app):
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        servers.append((server, thread))
        return f"http://127.0.0.1:{port}"

    yield serve_http
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def with_settings():
    """with_settings(config, section, key=value): a changed copy."""

    def with_settings(config, section, **values):
        part = dataclasses.replace(getattr(config, section), **values)
        return dataclasses.replace(config, **{section: part})

    return with_settings
