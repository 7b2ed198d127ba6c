"""Who gets in: every route, with every kind of token that is not right."""

import json
import time

import pytest

USER_ROUTES = [
    ("PUT", "/v1/users/{user}/assembly", {"history": [{"description": "a ship", "tag": "sci-fi"}]}),
    ("GET", "/v1/users/{user}/assembly", None),
    ("GET", "/v1/users/{user}/assembly/tickets/000000000000000000000000", None),
    ("GET", "/v1/users/{user}/adapter", None),
    ("DELETE", "/v1/users/{user}/assembly", None),
    ("POST", "/v1/completions", {"model": "user:{user}", "prompt": "a", "max_tokens": 1}),
    ("POST", "/v1/completions", {"model": "mini", "user": "{user}", "prompt": "a", "max_tokens": 1}),
    (
        "POST",
        "/v1/chat/completions",
        {"model": "user:{user}", "messages": [{"role": "user", "content": "a"}]},
    ),
    ("GET", "/v1/models/user:{user}", None),
    ("POST", "/v1/tasks/LaMP-2M/answer", {"input": "a ship", "user": "{user}"}),
]
OTHER_ROUTES = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/tasks", None),
    ("GET", "/v1/users", None),
    ("GET", "/metrics", None),
    ("GET", "/nowhere", None),
]
GENERATE = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/tasks")


def ask(client, route, *, user="alice", token=None):
    method, path, body = route
    text = None if body is None else json.dumps(body).replace("{user}", user)
    headers = {"Authorization": f"Bearer {token}"} if token else {"Authorization": ""}
    if text is not None:
        headers["Content-Type"] = "application/json"
    return client.request(method, path.replace("{user}", user), content=text, headers=headers)


def names(route):
    return f"{route[0]} {route[1]}"


@pytest.fixture(scope="module")
def bad_tokens(service, new_token):
    """kind -> a token that is not valid."""
    from serve.tokens import main

    right = service.made["acme"]
    expired = new_token(service.tokens, "--tenant", "acme", "--days", "1e-9")
    revoked = new_token(service.tokens, "--tenant", "acme")
    assert main(["revoke", str(service.tokens), revoked.split("_")[1]]) == 0
    unknown = f"ppcs_{'0' * 12}_{'A' * 43}"
    return {
        "no token": None,
        "wrong secret": right[:-1] + ("A" if right[-1] != "A" else "B"),
        "unknown id": unknown,
        "expired": expired,
        "revoked": revoked,
        "not a token": "root",
        "another kind": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.",
    }


@pytest.mark.parametrize("route", USER_ROUTES + OTHER_ROUTES, ids=names)
def test_without_a_valid_token_every_route_says_the_same(client, bad_tokens, route):
    answers = {kind: ask(client, route, token=token) for kind, token in bad_tokens.items()}
    assert {kind: r.status_code for kind, r in answers.items()} == dict.fromkeys(answers, 401)
    assert len({r.text for r in answers.values()}) == 1
    assert all(r.headers["WWW-Authenticate"] == "Bearer" for r in answers.values())


@pytest.fixture(scope="module")
def people(service, client, history, new_token):
    """`there` has an assembled model in acme; tokens for others."""
    assert client.put("/v1/users/there/assembly", json={"history": history(0)}).status_code == 200
    yield {
        "only bob": new_token(service.tokens, "--tenant", "acme", "--users", "bob"),
        "other tenant": service.made["other"],
        "no scope": new_token(service.tokens, "--tenant", "acme", "--scopes", "metrics"),
    }
    client.delete("/v1/users/there/assembly")


@pytest.mark.parametrize("route", USER_ROUTES, ids=names)
def test_a_token_for_another_user_learns_nothing(client, people, route):
    there, nobody = (ask(client, route, user=user, token=people["only bob"]) for user in ("there", "nobody"))
    assert there.status_code == nobody.status_code == 403
    assert there.text == nobody.text


@pytest.mark.parametrize(
    "route", [r for r in USER_ROUTES if r[0] != "PUT" and "tickets" not in r[1]], ids=names
)
def test_another_tenants_user_is_as_one_who_never_was(client, people, route):
    there, nobody = (ask(client, route, user=u, token=people["other tenant"]) for u in ("there", "nobody"))
    assert there.status_code == nobody.status_code
    assert there.text.replace("there", "nobody").replace("nobody is", "there is") == nobody.text or (
        there.json()["error"] == nobody.json()["error"]
    )
    assert route[0] == "DELETE" or there.status_code == 404
    assert client.get("/v1/users/there/assembly").status_code == 200


def test_the_same_name_in_two_tenants_is_two_people(client, service, people, history):
    before = client.get("/v1/users/there/assembly").json()
    headers = {"Authorization": f"Bearer {people['other tenant']}"}
    mine = client.put("/v1/users/there/assembly", json={"history": history(1)}, headers=headers).json()
    assert mine["version"] != before["version"]
    assert client.get("/v1/users/there/assembly").json() == before
    assert client.delete("/v1/users/there/assembly", headers=headers).status_code == 200
    assert client.get("/v1/users/there/assembly").json() == before


@pytest.mark.parametrize("route", USER_ROUTES + OTHER_ROUTES[:3], ids=names)
def test_a_missing_scope(client, people, route):
    answer = ask(client, route, user="there", token=people["no scope"])
    assert answer.status_code == 403
    assert ("generate" in answer.text) == route[1].startswith(GENERATE)


def test_metrics_need_their_scope(client, service, new_token):
    token = new_token(service.tokens, "--tenant", "acme")
    assert ask(client, ("GET", "/metrics", None), token=token).status_code == 403
    assert b"perpcs_serve_requests_total" in client.get("/metrics").content


def test_models_lists_what_the_token_may_use(client, people):
    def listed(token):
        answer = ask(client, ("GET", "/v1/models", None), token=token)
        return [model["id"] for model in answer.json()["data"]]

    assert "user:there" in [m["id"] for m in client.get("/v1/models").json()["data"]]
    assert listed(people["only bob"]) == ["mini"]
    assert listed(people["other tenant"]) == ["mini"]


def test_a_name_in_a_header_is_nobody(client, people):
    headers = {"Authorization": f"Bearer {people['only bob']}", "serve_multiplexed_model_id": "acme/there"}
    body = {"model": "user:there", "prompt": "a"}
    assert client.post("/v1/completions", json=body, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "path", ["/v1/users/..%2Fother%2Fthere/assembly", "/v1/users/a%00b/assembly", "/v1/users/%27/assembly"]
)
def test_odd_names_are_refused(client, path):
    assert client.get(path).status_code in (400, 404)


def test_a_revoked_token_ends_at_once(client, service, new_token):
    from serve.tokens import main

    token = new_token(service.tokens, "--tenant", "acme")
    assert ask(client, ("GET", "/v1/tasks", None), token=token).status_code == 200
    main(["revoke", str(service.tokens), token.split("_")[1]])
    assert ask(client, ("GET", "/v1/tasks", None), token=token).status_code == 401


def test_a_damaged_file_lets_nobody_in(open_service, client):
    from serve.doorman import Doorman

    made = open_service()
    doorman = Doorman(made.config)
    header = f"Bearer {made.made['acme']}"
    assert doorman.identify(header).tenant == "acme"
    kept = made.tokens.read_text()
    made.tokens.write_text("{")
    assert doorman.identify(header) is None
    made.tokens.write_text(kept)
    assert doorman.identify(header).tenant == "acme"


def test_the_file_has_no_secret(service):
    text = service.tokens.read_text()
    assert all(token.split("_", 2)[2] not in text for token in service.made.values())
    assert service.tokens.stat().st_mode & 0o077 == 0


def claims(**more):
    made = {"sub": "app", "aud": "perpcs", "exp": int(time.time()) + 60, "tenant": "acme", "users": "*"}
    return {**made, "scope": "generate", **more}


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"users": ["alice"]}, True),
        ({"exp": int(time.time()) - 60}, False),
        ({"exp": None}, False),
        ({"aud": "else"}, False),
        ({"aud": None}, False),
        ({"sub": None}, False),
        ({"tenant": "a/b"}, False),
        ({"tenant": None}, False),
        ({"users": "alice"}, False),
        ({"users": [1]}, False),
        ({"scope": ["generate"]}, False),
    ],
)
def test_signed_tokens(tmp_path, change, valid):
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from serve.config import JwtConfig
    from serve.jwt_auth import JwtVerifier

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "key.pem").write_bytes(public)
    verifier = JwtVerifier(JwtConfig(key_file=str(tmp_path / "key.pem")))
    content = {k: v for k, v in claims(**change).items() if v is not None}
    found = verifier.find(jwt.encode(content, key, algorithm="EdDSA"))
    assert (found is not None) == valid
    # Neither another algorithm, with what everybody knows as its secret, nor none at all.
    assert verifier.find(jwt.encode(content, None, algorithm="none")) is None
    assert verifier.find(jwt.encode(content, "x" * 32, algorithm="HS256")) is None
    other = Ed25519PrivateKey.generate()
    assert verifier.find(jwt.encode(content, other, algorithm="EdDSA")) is None


def test_the_open_mode_answers_this_machine_only(experiment, monkeypatch):
    from perpcs.errors import ConfigError
    from serve.config import load
    from serve.doorman import Doorman, require_loopback

    config = load(None, [f"experiment={experiment.folder}", "auth.open_on_loopback=true"])
    doorman = Doorman(config)
    assert doorman.identify(None).tenant == "dev"
    here = {"host": "127.0.0.1:8000"}
    assert doorman.lets_in("127.0.0.1", here) and doorman.lets_in("::1", {"host": "[::1]:8000"})
    assert not doorman.lets_in("192.0.2.7", here)
    assert not doorman.lets_in(None, here)
    assert not doorman.lets_in("127.0.0.1", {"host": "evil.example:8000"})
    assert not doorman.lets_in("127.0.0.1", {**here, "x-forwarded-for": "192.0.2.7"})
    assert not doorman.lets_in("127.0.0.1", {**here, "origin": "https://evil.example"})
    assert not doorman.lets_in("127.0.0.1", {**here, "origin": "null"})
    assert not doorman.lets_in("127.0.0.1", {"host": "testserver"})
    assert doorman.lets_in("127.0.0.1", {**here, "origin": "http://localhost:8000"})
    require_loopback(config, ["127.0.0.1"])
    for host in ("0.0.0.0", "::", "192.0.2.7"):
        with pytest.raises(ConfigError, match="without asking for tokens"):
            require_loopback(config, [host])
    monkeypatch.setenv(
        "RAY_SERVE_ENABLE_HA_PROXY", "1"
    )  # its replicas listen on all interfaces, whatever it says
    with pytest.raises(ConfigError, match="RAY_SERVE_ENABLE_HA_PROXY"):
        require_loopback(config, ["127.0.0.1"])


@pytest.mark.parametrize(
    "token", ["[" * 50_000, "e30." * 3000, "\u00e9.\u00e9.\u00e9", "...", "WyJhIl0.e30.", "A" * 9000]
)
def test_a_token_that_is_none_is_no_error(tmp_path, token):
    import base64

    from serve.config import JwtConfig
    from serve.jwt_auth import JwtVerifier

    (tmp_path / "key").write_text("s" * 40)
    verifier = JwtVerifier(JwtConfig(key_file=str(tmp_path / "key"), algorithm="HS256"))
    assert verifier.find(token) is None
    deep = base64.urlsafe_b64encode(b"[" * 5000).rstrip(b"=").decode()
    assert verifier.find(f"{deep}.e30.AAAA") is None


def test_a_key_of_another_kind_is_refused_at_the_start(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    from perpcs.errors import ConfigError
    from serve.config import JwtConfig
    from serve.jwt_auth import JwtVerifier

    public = (
        rsa.generate_private_key(65537, 2048)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    path = tmp_path / "key.pem"
    path.write_bytes(public)
    JwtVerifier(JwtConfig(key_file=str(path), algorithm="RS256"))
    for algorithm in ("EdDSA", "HS256"):
        with pytest.raises(ConfigError, match=r"auth\.jwt\.key_file"):
            JwtVerifier(JwtConfig(key_file=str(path), algorithm=algorithm))
    path.write_bytes(public[:80] + b"\n-----END PUBLIC KEY-----\n")
    with pytest.raises(ConfigError, match="is no key for RS256"):
        JwtVerifier(JwtConfig(key_file=str(path), algorithm="RS256"))
