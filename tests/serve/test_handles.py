"""The engine's deployment behind a handle, as the HTTP layer has it under Ray Serve; in this process, without a cluster."""

import pytest


@pytest.fixture(scope="module")
def far(service):
    """An HTTP client of the application over `RemoteBackend`."""
    from fastapi.testclient import TestClient
    from ray import serve as ray_serve

    from serve.api.application import build_api
    from serve.app import Engine
    from serve.remote import RemoteBackend

    handle = ray_serve.run(Engine.bind(service.config), name="handles", _local_testing_mode=True)
    headers = {"Authorization": f"Bearer {service.made['acme']}"}
    with TestClient(build_api(service.config, RemoteBackend(handle)), headers=headers) as far:
        yield far


BODY = {"model": "user:una", "prompt": "a ship leaves", "max_tokens": 8, "temperature": 0}


def test_it_answers_as_the_engine_does(far, client, history):
    made = far.put("/v1/users/una/assembly", json={"history": history(0), "rule": "gradient"})
    assert made.status_code == 200, made.text
    whole = far.post("/v1/completions", json=BODY)
    assert whole.status_code == 200
    assert whole.json()["choices"] == client.post("/v1/completions", json=BODY).json()["choices"]
    assert far.post("/v1/completions", json=BODY | {"stream": True}).text.endswith("data: [DONE]\n\n")
    assert far.delete("/v1/users/una/assembly").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "user:nobody"}, 404, "model_not_found"),
        ({"model": "mini", "prompt": [10**6]}, 400, None),
        ({"model": "mini", "prompt": "long " * 600}, 400, "context_length_exceeded"),
    ],
)
def test_a_refusal_is_an_answer(far, client, change, status, code, stream):
    """Not an exception of the replica: Ray would log a traceback for it."""
    found, own = (
        one.post("/v1/completions", json=BODY | change | {"stream": stream}) for one in (far, client)
    )
    assert found.status_code == own.status_code == status
    assert found.json() == own.json() and found.json()["error"]["code"] == code


def test_what_the_engine_refuses_is_no_exception_of_it(service):
    import asyncio

    from perpcs.generate.requests import UnknownUserError
    from serve.app import refusing
    from serve.messages import Refusal
    from serve.recipes import Owner

    asked = refusing(service.host.assembly)(Owner("acme", "nobody"))
    found = asyncio.run(asked)
    assert isinstance(found, Refusal) and isinstance(found.error, UnknownUserError)
