"""OpenAI's forms over the real engine: what its own client gets, streams, errors, and who answers."""

import concurrent.futures
import random
import time

import openai
import pytest

PROMPT = "a ship leaves the burning earth"


@pytest.fixture(scope="module")
def users(client, history):
    """Three users with assembled models: names in acme."""
    names = ["ann", "ben", "cyd"]
    for i, name in enumerate(names):
        answer = client.put(f"/v1/users/{name}/assembly", json={"history": history(i), "rule": "gradient"})
        assert answer.status_code == 200, answer.text
    yield names
    for name in names:
        client.delete(f"/v1/users/{name}/assembly")


@pytest.fixture(scope="module")
def api(service, serve_http):
    """OpenAI's own client, with nothing changed but the address."""
    url = serve_http(service.app)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=service.made["acme"], max_retries=0, timeout=60) as api:
        yield api


def complete(client, model, prompt=PROMPT, **more):
    body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, **more}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_everybody_has_a_model_of_their_own(client, users):
    texts = {name: complete(client, f"user:{name}")["choices"][0]["text"] for name in users}
    texts["base"] = complete(client, "mini")["choices"][0]["text"]
    assert len(set(texts.values())) == 4
    by_field = complete(client, "mini", user="ann")["choices"][0]["text"]
    assert by_field == texts["ann"]


def test_the_client_completes(api, users):
    made = api.completions.create(
        model="user:ann", prompt=[PROMPT, "b"], max_tokens=5, n=2, temperature=0, logprobs=2
    )
    assert [c.index for c in made.choices] == [0, 1, 2, 3]
    assert made.choices[0].text == made.choices[1].text
    for choice in made.choices:
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) <= 5
        assert "".join(choice.logprobs.tokens).startswith(choice.text[:1])
        assert all(max(top.values()) >= p - 1e-5 for top, p in zip(
            choice.logprobs.top_logprobs, choice.logprobs.token_logprobs, strict=True))  # fmt: skip
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_the_client_streams_what_it_gets_whole(api, users):
    asked = {"model": "user:ben", "prompt": PROMPT, "max_tokens": 12, "temperature": 0.9, "seed": 5}
    whole = api.completions.create(**asked)
    parts = list(api.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].text for p in parts if p.choices) == whole.choices[0].text
    assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == whole.choices[0].finish_reason
    assert parts[-1].usage == whole.usage and not parts[-1].choices
    again = api.completions.create(**asked | {"seed": 6})
    assert again.choices[0].text != whole.choices[0].text


def test_the_client_chats(api, users):
    asked = {
        "model": "user:cyd",
        "messages": [{"role": "system", "content": "short"}, {"role": "user", "content": PROMPT}],
        "max_completion_tokens": 8,
        "temperature": 0,
    }
    whole = api.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
    message = whole.choices[0].message
    assert message.role == "assistant" and message.content
    tokens = whole.choices[0].logprobs.content
    assert all(t.top_logprobs[0].token == t.token for t in tokens), "greedy takes the likeliest"
    parts = list(api.chat.completions.create(**asked, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in parts) == message.content


def test_a_stop_text_ends_the_answer_before_it(api, users):
    asked = {"model": "user:ann", "prompt": PROMPT, "max_tokens": 30, "temperature": 0}
    text = api.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = api.completions.create(**asked, stop=[stop, "never"])
    assert cut.choices[0].text == text[: text.find(stop)] and cut.choices[0].finish_reason == "stop"
    parts = api.completions.create(**asked, stop=stop, stream=True)
    assert "".join(p.choices[0].text for p in parts) == cut.choices[0].text


def test_the_client_lists_models(api, users):
    assert {"mini", "user:ann", "user:ben", "user:cyd"} <= {m.id for m in api.models.list()}
    assert api.models.retrieve("user:ann").id == "user:ann"


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found"),
        ({"model": "user:nobody"}, openai.NotFoundError, "model_not_found"),
        ({"model": "user:ann", "user": "ben"}, openai.BadRequestError, "conflict"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "invalid_value"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value"),
        ({"n": 100}, openai.BadRequestError, None),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "unsupported_parameter"),
        ({"echo": True}, openai.BadRequestError, "unsupported_parameter"),
        ({"prompt": [10**6]}, openai.BadRequestError, None),
        ({"prompt": "long " * 600}, openai.BadRequestError, "context_length_exceeded"),
        ({"prompt": "x" * 200_000}, openai.BadRequestError, "context_length_exceeded"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "invalid_value"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_client_raises_the_error_that_openai_would(api, users, change, error, code, stream):
    if stream and "stream_options" in change:
        pytest.skip("is right in a stream")
    asked = {"model": "user:ann", "prompt": PROMPT, "max_tokens": 4, "stream": stream} | change
    with pytest.raises(error) as raised:
        api.completions.create(**asked)
    assert raised.value.code == code
    assert PROMPT not in str(raised.value)


def test_an_api_key_that_is_wrong(api):
    with pytest.raises(openai.AuthenticationError):
        api.with_options(api_key="ppcs_x").models.list()


def test_neutral_values_of_what_we_do_not_have_are_no_error(client, users):
    asked = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": None, "best_of": 1, "echo": False}
    assert complete(client, "mini", **asked)["choices"]


def test_a_client_that_goes_away_frees_its_place(api, service, users):
    before = service.host.engine.stats()
    stream = api.completions.create(
        model="user:ann", prompt=PROMPT, max_tokens=256, temperature=1.3, stream=True
    )
    next(iter(stream))
    stream.response.close()
    for _ in range(300):
        if not service.host.engine.stats().active:
            break
        time.sleep(0.05)
    after = service.host.engine.stats()
    assert not after.active and after.tokens - before.tokens < 250


def test_limits_of_a_token(open_service, new_token):
    from fastapi.testclient import TestClient

    made = open_service("limits.body_bytes=2000")
    token = new_token(made.tokens, "--tenant", "acme", "--rate", "0.01", "--max-tokens", "4")
    client = TestClient(made.app, headers={"Authorization": f"Bearer {token}"})
    assert client.get("/v1/tasks").status_code == 200
    refused = client.get("/v1/tasks")
    assert refused.status_code == 429 and 50 <= int(refused.headers["Retry-After"]) <= 102
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    client.headers["Authorization"] = f"Bearer {made.made['acme']}"
    long = client.post("/v1/completions", json={"model": "mini", "prompt": "x" * 3000})
    assert long.status_code == 413
    chunked = client.post("/v1/completions", content=iter([b"x" * 1500, b"x" * 1500]))
    assert chunked.status_code == 413
    token = new_token(made.tokens, "--tenant", "acme", "--max-tokens", "4")
    body = {"model": "mini", "prompt": "x", "max_tokens": 5}
    answer = client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "max_tokens"


def test_any_mix_gives_everybody_the_answer_of_being_alone(api, service, history):
    """Random users, lengths, arrivals and cancellations over HTTP; fewer slots than users, assemblies in between."""
    draw = random.Random(0)
    url, key = str(api.base_url), {"Authorization": f"Bearer {service.made['acme']}"}
    names = [f"mix{i}" for i in range(6)]
    import httpx2

    http = httpx2.Client(base_url=url, headers=key, timeout=120)
    versions = [{"history": history(i), "rule": rule} for i in range(6) for rule in ("gradient", "gate")]
    for i, name in enumerate(names):
        assert http.put(f"users/{name}/assembly", json=versions[2 * i]).status_code == 200
    prompts = [PROMPT[: draw.randrange(1, 30)] for _ in range(5)]
    lengths = {p: draw.randrange(2, 14) for p in prompts}

    def answer(name, prompt):
        model = "mini" if name is None else f"user:{name}"
        body = {"model": model, "prompt": prompt, "max_tokens": lengths[prompt], "temperature": 0}
        return http.post("completions", json=body).json()["choices"][0]["text"]

    alone = {(name, p): answer(name, p) for name in [*names, None] for p in prompts}
    assert len(set(alone.values())) > 20

    def cancelled(name, prompt):
        body = {"model": f"user:{name}", "prompt": prompt, "max_tokens": 100, "stream": True}
        with http.stream("POST", "completions", json=body) as stream:
            next(stream.iter_lines())

    def one(seed):
        draw = random.Random(seed)
        name, prompt = draw.choice([*names, None]), draw.choice(prompts)
        time.sleep(draw.random() * 0.05)
        if name and draw.random() < 0.15:
            return cancelled(name, prompt)
        assert answer(name, prompt) == alone[name, prompt], (name, prompt)
        return None

    before = service.host.engine.stats().evictions
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(one, range(150)))
    assert service.host.engine.stats().evictions > before
    # Assembled anew: from the next request on, everybody who is asked gives the new answer.
    assert http.put(f"users/{names[0]}/assembly", json=versions[1]).status_code == 200
    changed = [answer(names[0], p) for p in prompts]
    assert changed != [alone[names[0], p] for p in prompts]
    for name in names:
        http.delete(f"users/{name}/assembly")
    http.close()


def test_the_task_is_asked_as_the_evaluation_asks_it(client, service, experiment, users):
    from perpcs.generate.greedy import generate
    from perpcs.lora.bank import AdapterBank
    from perpcs.population.prompts import Context
    from serve.loading import open_experiment
    from serve.recipes import Owner

    opened = open_experiment(service.config)
    target = experiment.people.targets[0]
    query = target.queries[0]
    fields = [dict(item.fields) for item in target.history]
    recipe = service.host._recipes.get(Owner("acme", "ann"))
    bank = AdapterBank(opened.base.model.projections, 1, rank=32, scale=1.0)
    bank.load(0, service.host._pool.adapter(recipe))
    for context in (Context(), Context(retrieve=2, profile=True)):
        prompt = opened.prompter.query(target, query, context=context).prompt
        most = opened.experiment.prompt.max_label
        eos = opened.base.tokenizer.eos_token_id
        ids = generate(opened.base.model, [prompt], bank=bank, slots=[0], max_new=most, eos_id=eos)[0]
        expected = opened.base.tokenizer.decode(ids, skip_special_tokens=True).strip()
        shown = {"history": fields, "retrieve": 2, "profile": True} if context.retrieve else {}
        body = {"input": query.input, "user": "ann", **shown}
        found = client.post("/v1/tasks/LaMP-2M/answer", json=body).json()
        assert found["answer"] == expected


def test_nothing_that_users_wrote_is_logged(client, users, caplog):
    import logging

    with caplog.at_level(logging.DEBUG):
        secret = "zebrafish on the staircase"
        complete(client, "user:ann", prompt=secret)
        client.post("/v1/completions", json={"model": "user:ann", "prompt": secret, "max_tokens": 0})
        item = {"description": secret, "tagg": "comedy"}
        assert client.put("/v1/users/zed/assembly", json={"history": [item]}).status_code == 400
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("serve", "perpcs", "storage"))]
    assert not any("zebrafish" in line or "ann" in line.split("/") for line in ours)


def test_of_tokens_that_look_alike_the_likeliest_is_shown():
    from serve.api.shapes import _by_text

    assert _by_text([("\ufffd", -0.1), ("a", -1.0), ("\ufffd", -2.0)]) == {"\ufffd": -0.1, "a": -1.0}
