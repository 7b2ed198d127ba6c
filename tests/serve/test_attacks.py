"""What somebody might send who means no good: none of it is an error of ours, and none gets further than it should."""

import http.client
import json
import time

import pytest

PROMPT = "a ship leaves the burning earth"


@pytest.fixture(scope="module")
def zoe(client, history):
    """A user with an assembled model."""
    assert client.put("/v1/users/zoe/assembly", json={"history": history(0)}).status_code == 200
    yield "zoe"
    client.delete("/v1/users/zoe/assembly")


SURROGATE = "\\ud800"
BODIES = [
    '{"model": "mini", "prompt": "' + SURROGATE + '"}',
    '{"model": "user:' + SURROGATE + '", "prompt": "a"}',
    '{"model": "mini", "prompt": "a", "stop": "' + SURROGATE + '"}',
    '{"model": "mini", "prompt": "a", "seed": 1' + "0" * 5000 + "}",
    '{"model": "mini", "prompt": "a", "temperature": NaN}',
    '{"model": "mini", "prompt": "a", "top_p": 1e999}',
    "[" * 100_000,
    '{"model": "mini", "prompt": ' + "[" * 50_000 + "]" * 50_000 + "}",
    '{"model": "mini", "prompt": "a", "prompt": null}',
    "\x00",
    "",
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:40])
def test_a_body_that_is_none_is_the_senders_fault(client, body):
    answer = client.post(
        "/v1/completions", content=body.encode(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400 and set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("text", [SURROGATE, "\\u0000", "\\u202e\\u0301" * 50, "\\uffff"])
def test_odd_text_in_a_history(client, text):
    body = '{"history": [{"description": "' + text + '", "tag": "comedy"}]}'
    headers = {"Content-Type": "application/json"}
    answer = client.put("/v1/users/odd/assembly", content=body, headers=headers)
    assert answer.status_code == (400 if text == SURROGATE else 200), answer.text
    client.delete("/v1/users/odd/assembly")


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "a%2f..%2fb",
        "a%0a",
        "a%0d%0aX-Other: 1",
        "%00",
        "a b",
        "a%27 OR 1=1 --",
        "x" * 129,
        "%ef%bc%a1",
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_user_is_never_a_path_or_a_query(client, name, method):
    answer = client.request(method, f"/v1/users/{name}/assembly")
    assert answer.status_code in (400, 404) and "x-other" not in answer.headers


def test_a_ticket_is_the_owners_alone_and_no_path(client, service, zoe, history):
    made = client.put("/v1/users/zoe/assembly?wait=false", json={"history": history(0)})
    ticket = made.json()["id"]
    theirs = {"Authorization": f"Bearer {service.made['other']}"}
    where = "/v1/users/{}/assembly/tickets/{}"
    assert client.get(where.format("zoe", ticket), headers=theirs).status_code == 404
    for guess in (ticket[:-1] + "x", ticket.upper() + "0", "..%2f" * 3, "0" * 24):
        assert client.get(where.format("zoe", guess)).status_code == 404
    for _ in range(600):
        if client.get(where.format("zoe", ticket)).json()["status"] == "done":
            return
        time.sleep(0.05)
    raise AssertionError("the assembly did not end")


def test_headers_say_nothing_about_who_asks(client, service, zoe):
    body = {"model": "user:zoe", "prompt": PROMPT, "max_tokens": 1}
    theirs = {"Authorization": f"Bearer {service.made['other']}"}
    for header in ("X-Tenant", "X-User", "X-Forwarded-User", "serve_multiplexed_model_id", "X-Original-URL"):
        assert (
            client.post("/v1/completions", json=body, headers=theirs | {header: "acme/zoe"}).status_code
            == 404
        )
    both = [("Authorization", theirs["Authorization"]), ("Authorization", client.headers["Authorization"])]
    assert client.post("/v1/completions", json=body, headers=both).status_code in (401, 404)


@pytest.fixture(scope="module")
def raw(service, serve_http):
    """raw(request): the first line of what a socket gets for these bytes."""
    import socket
    from urllib.parse import urlsplit

    address = urlsplit(serve_http(service.app))

    def raw(request):
        with socket.create_connection((address.hostname, address.port), timeout=30) as line:
            line.sendall(request)
            line.shutdown(socket.SHUT_WR)
            return line.makefile("rb").readline().decode()

    raw.address = address
    return raw


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nContent-Length: 50",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: -1",
        b"Content-Length: 5, 50",
        b"Transfer-Encoding : chunked",
    ],
)
def test_two_lengths_are_none(raw, headers):
    found = raw(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n\r\nhello")
    assert found.startswith("HTTP/1.1 40") or found == ""


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_leaves_nothing_running(raw, service, zoe, stream):
    body = {
        "model": "user:zoe",
        "prompt": PROMPT,
        "max_tokens": 256,
        "temperature": 1.3,
        "n": 8,
        "seed": 36,
        "stream": stream,
    }
    stats, tokens = service.host.engine.stats, []
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {service.made['acme']}"}
    for hangs_up in (False, True):
        before = stats()
        line = http.client.HTTPConnection(raw.address.hostname, raw.address.port, timeout=60)
        line.request("POST", "/v1/completions", json.dumps(body), headers)
        if hangs_up:
            wait(lambda before=before: stats().requests > before.requests)
        else:
            line.getresponse().read()
        line.close()
        wait(lambda: stats().active == stats().waiting == 0)
        tokens.append(stats().tokens - before.tokens)
    assert tokens[1] < tokens[0] / 2, "the same answers, ended long before their ends"


def wait(true):
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def test_anybody_may_ask_whether_it_is_ready_and_the_engine_is_not_asked_each_time(service, monkeypatch):
    from fastapi.testclient import TestClient

    from serve.playground.world import world_of

    asked = []
    card = service.host.card

    async def counted():
        asked.append(1)
        return await card()

    monkeypatch.setattr(service.host, "card", counted)
    nobody, started = TestClient(service.app), time.monotonic()
    assert [nobody.get("/readyz").status_code for _ in range(20)] == [200] * 20
    assert len(asked) <= 1 + (time.monotonic() - started), "once a second at most"
    nobody.get("/playground/world.json")
    made = world_of.cache_info().misses
    assert nobody.get("/playground/world.json").status_code == 200
    assert world_of.cache_info().misses == made


def test_a_question_that_got_lost_is_given_up_and_asked_again(service, monkeypatch):
    import asyncio
    from types import SimpleNamespace

    from serve.api import context

    asked = []

    async def card():
        asked.append(1)
        if len(asked) == 1:
            await asyncio.Event().wait()

    async def ask():
        hub = context.Service(service.config, SimpleNamespace(card=card), SimpleNamespace(config=None))
        crowd = await asyncio.gather(*(hub.ready() for _ in range(5)), return_exceptions=True)
        assert [type(answer) for answer in crowd] == [TimeoutError] * 5 and len(asked) == 1
        with pytest.raises(TimeoutError):
            await hub.ready()
        assert len(asked) == 1, "within a second the bad answer counts too"
        hub._ready_at -= 1.1
        await hub.ready()
        assert len(asked) == 2

    monkeypatch.setattr(context, "READY_S", 0.05)
    asyncio.run(ask())


def test_no_socket_beside_http(client):
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/v1/completions"):
        pass
    assert closed.value.code == 1008


HTML = "<img src=x onerror=alert(1)>"


def test_what_users_write_is_no_page(client, zoe):
    """Names and errors come back as JSON that no browser takes for a page."""
    for answer in (
        client.get(f"/v1/users/{HTML}/assembly"),
        client.get(f"/v1/models/{HTML}"),
        client.post("/v1/completions", json={"model": HTML, "prompt": HTML}),
        client.post("/v1/completions", json={"model": "mini", "prompt": "a", HTML: 1}),
    ):
        assert answer.status_code in (400, 404)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
