"""Users' assemblies: made, looked at, taken away, forgotten so that no byte is left."""

import io
import threading
import time
import zipfile
from typing import get_args

import pytest

from perpcs.errors import ConfigError
from serve.config import RuleName
from storage.withdraw import search


def put(client, user, history, **body):
    return client.put(f"/v1/users/{user}/assembly", json={"history": history, **body})


def test_an_assembly_says_what_it_is_made_of(client, history):
    made = put(client, "dora", history(0), rule="gradient", top_k=2).json()
    assert made["history_items"] == 8 and made["top_k"] == 2 and made["rule"] == "gradient"
    assert made["bytes"] < 1000 and sum(s["weight"] for s in made["sharers"]) == pytest.approx(1, abs=0.02)
    assert all(s["sharer"].startswith("s") and s["sharer"][1:].isdigit() for s in made["sharers"])
    assert set(made["seconds"]) == {"wait", "open", "select", "store"}
    found = client.get("/v1/users/dora/assembly?detail=pieces").json()
    assert {k: v for k, v in made.items() if k != "seconds"} == {
        k: v for k, v in found.items() if k != "projections"
    }
    assert len(found["projections"]) == 8 and {p["layer"] for p in found["projections"]} == {0, 1}
    assert all(1 <= len(p["picks"]) <= 2 for p in found["projections"])
    again = put(client, "dora", history(0), rule="gradient", top_k=2).json()
    assert again["version"] == made["version"]
    client.delete("/v1/users/dora/assembly")


@pytest.mark.parametrize(
    ("rule", "merge"),
    [
        *((rule, "svd") for rule in get_args(RuleName)),
        *((rule, merge) for rule in ("gradient", "gate") for merge in ("average", "concat")),
        ("gate_batches", "average"),
        ("reranked_fitted", "concat"),
    ],
)
def test_every_rule_and_merge_answers(client, history, rule, merge):
    made = put(client, "eve", history(1), rule=rule, merge=merge, top_k=2)
    assert made.status_code == 200, made.text
    body = {"model": "user:eve", "prompt": "a ship", "max_tokens": 2}
    assert client.post("/v1/completions", json=body).status_code == 200
    client.delete("/v1/users/eve/assembly")


@pytest.mark.parametrize(("rule", "merge"), [("gate_batches", "concat"), ("reranked_fitted", "average")])
def test_a_merge_that_does_not_fit_the_rule_is_refused(client, history, rule, merge):
    refused = put(client, "eve", history(1), rule=rule, merge=merge)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "merge"


def test_asked_for_nothing_the_service_assembles_as_the_experiment_did(client, service, experiment, history):
    from jobs.loading import open_assembler
    from perpcs.assembly.rules import make_recipe
    from perpcs.records import User
    from serve.api.history import read_history
    from serve.assembling import NOBODY
    from serve.recipes import Owner

    headers = {"Authorization": f"Bearer {service.made['other']}"}  # who may use every sharer of the pool
    made = client.put("/v1/users/dan/assembly", json={"history": history(3)}, headers=headers).json()
    assert (made["rule"], made["merge"], made["top_k"]) == ("reranked_fitted", "svd", 8)
    opened = service.host._opened
    items = read_history(history(3), opened.prompter.task.name, service.config.limits)
    assembler = open_assembler(opened.experiment, experiment.paths, opened.assembly)
    picks = assembler.picks("reranked_fitted", "svd", [User(NOBODY, items)])[0]
    theirs = make_recipe("dan", "served", picks, assembler.pieces, merge="svd")
    ours = service.host._recipes.get(Owner("other", "dan"))
    assert (ours.codes == theirs.codes).all() and (ours.ordinals == theirs.ordinals).all()
    client.delete("/v1/users/dan/assembly", headers=headers)


def test_more_pieces_than_the_bank_has_room_for(open_service, history):
    from fastapi.testclient import TestClient

    with pytest.raises(
        ConfigError, match=r"assembly\.top_k: reranked_fitted chooses 8 .* raise assembly\.max_top_k"
    ):
        open_service("assembly.max_top_k=3")
    with pytest.raises(
        ConfigError, match=r"assembly\.merge: 8 pieces joined by concat have rank 32, .* 4; use svd"
    ):
        open_service("engine.rank=4", "assembly.merge=concat")
    with pytest.raises(ConfigError, match=r"engine\.rank: 3 is below the pool's rank 4"):
        open_service("engine.rank=3")
    small = open_service("assembly.max_top_k=3", "assembly.rule=reranked")
    with TestClient(small.app, headers={"Authorization": f"Bearer {small.made['acme']}"}) as client:
        assert put(client, "dan", history(3)).json()["top_k"] == 3
        refused = put(client, "eve", history(3), rule="reranked_fitted")
        assert refused.status_code == 400 and "ask for top_k=3" in refused.json()["error"]["message"]
        assert put(client, "eve", history(3), rule="reranked_fitted", top_k=3).json()["top_k"] == 3
    thin = open_service("engine.rank=4", "assembly.merge=svd")
    with TestClient(thin.app, headers={"Authorization": f"Bearer {thin.made['acme']}"}) as client:
        assert put(client, "dan", history(3)).json()["top_k"] == 8
        assert (
            client.post("/v1/completions", json={"model": "user:dan", "prompt": "a ship"}).status_code == 200
        )
        refused = put(client, "eve", history(3), merge="concat")
        assert refused.status_code == 400 and "use svd" in refused.json()["error"]["message"]


def test_a_tenants_sharers_serve_that_tenant_alone(client, service, history):
    """Of seven sharers, one was trained for the tenant `other`."""
    headers = {"Authorization": f"Bearer {service.made['other']}"}
    everybody = {"history": history(0), "rule": "gradient", "top_k": 7}
    theirs = client.put("/v1/users/fay/assembly", json=everybody, headers=headers).json()
    ours = client.put("/v1/users/fay/assembly", json=everybody).json()
    ids = service.host._pool.at(theirs["pool_version"]).ids
    own = f"s{ids.index('others-own')}"
    assert own in {s["sharer"] for s in theirs["sharers"]}
    detail = client.get("/v1/users/fay/assembly?detail=pieces").json()
    assert own not in {pick["sharer"] for p in detail["projections"] for pick in p["picks"]}
    assert len(ours["sharers"]) <= 6
    client.delete("/v1/users/fay/assembly")
    client.delete("/v1/users/fay/assembly", headers=headers)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"history": []}, "history"),
        ({"history": [{"description": "a ship"}]}, "tag: is missing"),
        ({"history": [{"tag": "comedy"}]}, "description: is missing"),
        ({"history": [{"description": "a", "tag": ""}]}, "no history item with an output"),
        ({"history": [{"description": "a", "tag": "b", "date": "tuesday"}]}, "date"),
        ({"history": [{"description": "a", "tag": ["b"]}]}, "history"),
        ({"history": "a ship"}, "history"),
        ({"history": [{"description": "a", "tag": "b"}], "rule": "magic"}, "rule"),
        ({"history": [{"description": "a", "tag": "b"}], "top_k": 9}, "top_k"),
        ({"history": [{"description": "a", "tag": "b"}], "topk": 2}, "topk: is not supported"),
        ({"history": [{"description": "a", "tag": "b"}] * 2001}, "2001 items"),
        ({}, "history"),
    ],
)
def test_a_history_that_cannot_be_used(client, service, body, says):
    answer = client.put("/v1/users/gus/assembly", json=body)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]
    assert client.get("/v1/users/gus/assembly").status_code == 404
    assert not search([b"gus"], [str(service.store)])


def test_the_adapter_leaves_in_pefts_format(client, service, history, tmp_path):
    from pathlib import Path

    from perpcs.lora.peft_files import read_peft

    put(client, "hal", history(2), rule="gradient")
    answer = client.get("/v1/users/hal/adapter")
    assert answer.headers["Content-Type"] == "application/zip"
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
    spec = service.host._pool.spec
    read = read_peft(Path(tmp_path), spec.projections, scale=1.0, fingerprint=spec.fingerprint)
    assert set(read.adapter) == {p.name for p in spec.projections}
    client.delete("/v1/users/hal/assembly")


@pytest.mark.parametrize("how", [{"headers": {"Prefer": "respond-async"}}, {"params": {"wait": "false"}}])
def test_an_assembly_that_nobody_waits_for(client, history, how):
    answer = client.put("/v1/users/ivy/assembly", json={"history": history(0)}, **how)
    assert answer.status_code == 202 and answer.json()["status"] == "waiting"
    where = answer.headers["Location"]
    for _ in range(600):
        state = client.get(where).json()
        if state["status"] not in ("waiting", "running"):
            break
        time.sleep(0.05)
    assert state["status"] == "done"
    assert client.get("/v1/users/ivy/assembly").json()["version"] == state["version"]
    assert client.get(where.replace("ivy", "eve")).status_code == 404
    client.delete("/v1/users/ivy/assembly")
    assert client.get(where).status_code == 404


def test_one_whose_replica_died_is_lost(tmp_path, monkeypatch):
    from serve import tickets
    from serve.recipes import Owner

    book, owner = tickets.Tickets(str(tmp_path)), Owner("acme", "jo")
    ticket = book.new(owner)
    book.begin(owner, ticket)
    monkeypatch.setattr(tickets, "ALIVE_S", 0.0)
    monkeypatch.setattr(tickets, "LOST_S", 0.2)
    time.sleep(0.3)
    assert book.read(owner, ticket)["status"] == "lost"
    book.keep_alive()
    assert book.read(owner, ticket)["status"] == "running"
    assert book.read(Owner("acme", "joe"), ticket) is None
    book.end(owner, ticket, "done", version="v")
    monkeypatch.setattr(tickets, "LOST_S", 60.0)
    book.keep_alive()
    assert book.read(owner, ticket)["status"] == "done"


def test_a_forgotten_ticket_stays_away(tmp_path, monkeypatch):
    from serve import tickets
    from serve.errors import ForgottenError
    from serve.recipes import Owner

    here, elsewhere, owner = (
        tickets.Tickets(str(tmp_path)),
        tickets.Tickets(str(tmp_path)),
        Owner("acme", "jo"),
    )
    monkeypatch.setattr(tickets, "ALIVE_S", 0.0)
    begun, waiting = here.new(owner), here.new(owner)
    here.begin(owner, begun)
    elsewhere.forget(owner)
    here.keep_alive()
    here.end(owner, begun, "done", version="v")
    with pytest.raises(ForgottenError):
        here.begin(owner, waiting)
    assert not list((tmp_path / "tickets").iterdir()), "not even a folder with a hash of the name"


def test_a_late_assembly_takes_back_its_own_recipe_alone(open_service, history, monkeypatch):
    """One replica is slow over a history; on another the user is forgotten, and assembled anew, before it is done."""
    from fastapi.testclient import TestClient

    from serve.forgotten import Forgotten
    from serve.host import Host
    from serve.recipes import Owner

    slow = open_service("assembly.rule=gradient")
    quick = Host(slow.config)
    owner, at, go_on = Owner("acme", "nia"), threading.Event(), threading.Event()
    put_away = slow.host._recipes.put

    def put_late(recipe):
        at.set()
        assert go_on.wait(60)
        put_away(recipe)

    monkeypatch.setattr(slow.host._recipes, "put", put_late)
    with TestClient(slow.app, headers={"Authorization": f"Bearer {slow.made['acme']}"}) as client:
        answers = []
        late = threading.Thread(target=lambda: answers.append(put(client, "nia", history(0))))
        late.start()
        assert at.wait(60), "its last look at the mark is over"
        quick._forget(owner)
        sign = Forgotten(str(slow.store)).sign(owner)
        made, _ = quick._desk.submit(_order(owner, slow, history(1)), sign).result(60)
        go_on.set()
        late.join(60)
    assert answers[0].status_code == 409
    for host in (quick, slow.host):
        assert host._recipes.current(owner) == made.extra["version"], "the newer one is still there"
    quick.close()


def _order(owner, service, items):
    from serve.api.history import read_history
    from serve.messages import Order

    past = read_history(items, "LaMP-2M", service.config.limits)
    return Order(owner, past, "gradient", "concat", 2)


def test_who_waited_for_a_look_that_failed_looks_again(tmp_path, monkeypatch):
    from perpcs.errors import StoreError
    from serve.recipes import Owner, ServedRecipes

    recipes, owner = ServedRecipes(str(tmp_path)), Owner("acme", "jo")
    began, fail, answers = threading.Event(), threading.Event(), []

    def broken():
        began.set()
        fail.wait(60)
        raise StoreError("the store does not answer")

    def ask():
        try:
            answers.append(recipes.current(owner))
        except StoreError as error:
            answers.append(str(error))

    recipes._newest[owner.id] = (0, 0, "forgotten meanwhile")
    monkeypatch.setattr(recipes, "_read_new", broken)
    crowd = [threading.Thread(target=ask) for _ in range(4)]
    crowd[0].start()
    assert began.wait(60)
    for thread in crowd[1:]:
        thread.start()
    time.sleep(0.2)
    fail.set()
    for thread in crowd:
        thread.join(60)
    assert answers == ["the store does not answer"] * 4


def test_a_forgotten_user_leaves_no_byte(client, service, history):
    """Neither the name nor the recipe is anywhere in the store, in memory, or in what is answered."""
    for i in range(3):  # several versions, each in a file of its own
        put(client, "kimberly", history(i), rule="gradient")
        put(client, "lea", history(i), rule="gate")
    from serve.recipes import Owner

    owner = Owner("acme", "kimberly")
    recipe = service.host._recipes.get(owner)
    body = {"model": "user:kimberly", "prompt": "a ship", "max_tokens": 2}
    assert client.post("/v1/completions", json=body).status_code == 200
    slot = f"{owner.id}\x1f{recipe.extra['version']}"
    assert slot in service.host.engine._table.resident
    samples = [b"kimberly", recipe.ordinals.tobytes(), recipe.extra["version"].encode()]
    assert search(samples, [str(service.store)])
    assert client.delete("/v1/users/kimberly/assembly").json() == {
        "object": "user.forgotten",
        "user": "kimberly",
    }
    assert search([b"kimberly", recipe.extra["version"].encode()], [str(service.store)]) == []
    never = client.post("/v1/completions", json={**body, "model": "user:never-was"})
    gone = client.post("/v1/completions", json=body)
    assert gone.status_code == never.status_code == 404 and gone.text == never.text
    for _ in range(100):
        if slot not in service.host.engine._table.resident:
            break
        time.sleep(0.05)
    assert slot not in service.host.engine._table.resident
    assert client.get("/v1/users/lea/assembly").status_code == 200
    client.delete("/v1/users/lea/assembly")


def test_another_replica_knows_at_once(client, service, open_service, history):
    """Two replicas over one store: what one replaces or forgets, the other never answers with again."""
    from fastapi.testclient import TestClient

    second = open_service(f"store.folder={service.store}", f"auth.tokens={service.tokens}")
    other = TestClient(second.app, headers=dict(client.headers))
    body = {"model": "user:max", "prompt": "a ship leaves", "max_tokens": 8, "temperature": 0}
    texts = []
    for i in (0, 3):
        assert put(client, "max", history(i), rule="gradient").status_code == 200
        texts.append(
            [c.post("/v1/completions", json=body).json()["choices"][0]["text"] for c in (client, other)]
        )
    assert texts[0][0] == texts[0][1] and texts[1][0] == texts[1][1] and texts[0] != texts[1]
    assert client.delete("/v1/users/max/assembly").status_code == 200
    assert other.post("/v1/completions", json=body).status_code == 404
    assert other.get("/v1/users/max/assembly").status_code == 404


def test_forgetting_ends_an_assembly_under_way(client, service, history, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    put_recipe = service.host._recipes.put

    def slowly(recipe):
        started.set()
        go_on.wait(30)
        put_recipe(recipe)

    monkeypatch.setattr(service.host._recipes, "put", slowly)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(put(client, "ned", history(0))))
    thread.start()
    assert started.wait(60)
    assert client.delete("/v1/users/ned/assembly").status_code == 200
    go_on.set()
    thread.join(60)
    assert answers[0].status_code == 409 and answers[0].json()["error"]["code"] == "user_forgotten"
    assert client.get("/v1/users/ned/assembly").status_code == 404
    assert not search([b"ned"], [str(service.store)])


def test_who_withdrew_is_in_no_new_assembly(experiment, open_service, history, tmp_path):
    import shutil

    from fastapi.testclient import TestClient

    from storage.pool import Pool
    from storage.withdraw import erase, withdraw

    copied = tmp_path / "mini"
    shutil.copytree(experiment.folder, copied)
    made = open_service(f"experiment={copied}")
    client = TestClient(made.app, headers={"Authorization": f"Bearer {made.made['acme']}"})
    everybody = {"rule": "gradient_global", "top_k": 1}
    before = put(client, "oda", history(0), **everybody).json()
    pool = Pool.open(str(copied / "pool"))
    gone = pool.view(before["pool_version"]).ids[int(before["sharers"][0]["sharer"][1:])]
    withdraw(pool, gone)
    after = put(client, "pia", history(0), **everybody).json()
    assert pool.view(after["pool_version"]).ids[int(after["sharers"][0]["sharer"][1:])] != gone
    erase(pool, index_folders=[str(copied / "indexes")])
    answer = client.post("/v1/completions", json={"model": "user:oda", "prompt": "a", "max_tokens": 2})
    assert answer.status_code == 409 and answer.json()["error"]["code"] == "assembly_stale"
    assert put(client, "oda", history(0), **everybody).status_code == 200
    answer = client.post("/v1/completions", json={"model": "user:oda", "prompt": "a", "max_tokens": 2})
    assert answer.status_code == 200


def test_what_the_experiment_shares_is_what_is_assembled_from(experiment, open_service, history, tmp_path):
    """`assembly.sharers` and `assembly.sharing_ratio` of the experiment hold when it is served."""
    import shutil

    import yaml
    from fastapi.testclient import TestClient

    from storage.masks import sharer_subset, sharing_mask

    copied = tmp_path / "mini"
    shutil.copytree(experiment.folder, copied)
    settings = yaml.safe_load((copied / "config.yaml").read_text())
    settings["assembly"] |= {"sharers": 3, "sharing_ratio": 0.5}
    (copied / "config.yaml").write_text(yaml.safe_dump(settings))
    made = open_service(f"experiment={copied}")
    client = TestClient(made.app, headers={"Authorization": f"Bearer {made.made['acme']}"})
    put(client, "quinn", history(0), rule="gradient", top_k=7)
    found = client.get("/v1/users/quinn/assembly?detail=pieces").json()
    ids = made.host._pool.at(found["pool_version"]).ids
    members = [i for i in ids if i != "others-own"]
    names = [p["name"] for p in found["projections"]]
    three = sharer_subset(members, count=3, seed=0)
    shared = sharing_mask(members, names, ratio=0.5, seed=0)
    picked = set()
    for j, projection in enumerate(found["projections"]):
        for pick in projection["picks"]:
            i = members.index(ids[int(pick["sharer"][1:])])
            assert three[i] and shared[i, j], (pick, projection["name"])
            picked.add(i)
    assert picked
