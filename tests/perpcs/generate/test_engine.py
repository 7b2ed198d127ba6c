"""The engine: a request's tokens are the same alone and in any mix, and nobody's mishap is another's."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch

from perpcs.errors import DataError, ModelError
from perpcs.generate.engine import Engine, answers
from perpcs.generate.greedy import generate
from perpcs.generate.limits import EngineConfig
from perpcs.generate.paged import PageConfig
from perpcs.generate.requests import BusyError, Completion, Request, UnknownUserError
from perpcs.generate.sampling import Sampling
from perpcs.lora.bank import AdapterBank
from perpcs.lora.inject import BankedModel

TARGETS = ("q_proj", "v_proj", "down_proj")
USERS = [f"u{i}" for i in range(7)]
EOS = 2


@pytest.fixture
def model(make_llama):
    return BankedModel(make_llama(), TARGETS, pad_id=0)


def adapters(model: BankedModel, *, rank: int = 3) -> dict:
    draw = torch.Generator().manual_seed(7)
    return {
        user: {
            p.name: (
                torch.randn(rank, p.d_in, generator=draw) * 0.4,
                torch.randn(p.d_out, rank, generator=draw) * 0.4,
            )
            for p in model.projections
        }
        for user in USERS
    }


def open_engine(model, adapter_of, *, slots=3, **limits) -> Engine:
    pages = PageConfig(page=8, cache_tokens=limits.pop("cache_tokens", 1024), step_tokens=32, requests=6)
    bank = AdapterBank(model.projections, slots, rank=4, scale=0.5)
    return Engine(model, bank, adapter_of, config=EngineConfig(pages=pages, **limits))


def prompts_of(n: int, seed: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.randrange(3, 97) for _ in range(draw.randrange(1, 45))) for _ in range(n)]


def alone(model, adapter, prompt, max_new) -> list[int]:
    """The oracle: the request by itself through the model's own `generate`."""
    bank = None
    if adapter is not None:
        bank = AdapterBank(model.projections, 1, rank=4, scale=0.5)
        bank.load(0, adapter)
    return generate(model, [prompt], bank=bank, slots=[0], max_new=max_new, eos_id=EOS)[0]


@pytest.mark.parametrize("seed", range(3))
def test_any_mix_gives_everybody_the_answer_of_being_alone(model, seed):
    """Random users, lengths, arrivals and cancellations; fewer slots than users, so adapters come and go."""
    draw, made = random.Random(seed), adapters(model)

    def slowly(user: str):
        time.sleep(draw.random() * 0.01)
        return made[user]

    asked = []
    with open_engine(model, slowly) as engine:
        for prompt in prompts_of(40, seed):
            user = draw.choice([*USERS, None])
            request = Request(prompt, user, max_new=draw.randrange(1, 20), eos=frozenset({EOS}))
            asked.append((request, engine.submit(request), draw.random() < 0.2))
            if asked[-1][2]:
                threading.Timer(draw.random() * 0.05, asked[-1][1].cancel).start()
            if draw.random() < 0.1:
                engine.forget(draw.choice(USERS))
            time.sleep(draw.random() * 0.004)
        found = [handle.result(60) for _, handle, _ in asked]
        stats = engine.stats()
    assert stats.evictions > 0 and stats.failed_steps == 0
    for (request, _, cancelled), completion in zip(asked, found, strict=True):
        expected = alone(model, made.get(request.user), request.prompt, request.max_new)
        if completion.finish == "cancelled":
            assert cancelled and completion.ids == expected[: len(completion.ids)]
        else:
            assert completion.ids == expected
            assert completion.finish == ("length" if len(expected) == request.max_new else "stop")


def other_model(kind: str):
    import transformers as t

    shape = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    torch.manual_seed(4)
    return {
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**shape, num_key_value_heads=1)),
        "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**shape)),
        "mistral, sliding window": lambda: t.MistralForCausalLM(
            t.MistralConfig(**shape, num_key_value_heads=2, sliding_window=8)
        ),
    }[kind]().eval()


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("qwen2", ("q_proj", "up_proj")),
        ("neox", ("query_key_value", "dense")),
        ("mistral, sliding window", ("v_proj",)),
    ],
)
def test_other_architectures(kind, targets):
    model = BankedModel(other_model(kind), targets, pad_id=0)
    made = adapters(model)
    requests = [Request(p, USERS[j % 7], max_new=10) for j, p in enumerate(prompts_of(9, 11))]
    with open_engine(model, made.__getitem__) as engine:
        found = answers([engine.submit(r) for r in requests])
        assert engine.stats().failed_steps == 0
    bank = AdapterBank(model.projections, 7, rank=4, scale=0.5)
    for slot, user in enumerate(USERS):
        bank.load(slot, made[user])
    slots = [j % 7 for j in range(9)]
    assert found == generate(
        model, [r.prompt for r in requests], bank=bank, slots=slots, max_new=10, eos_id=-1
    )


def test_the_same_prompt_of_many_users_is_shared_by_none(model):
    """Its keys and values differ with the adapter, however many blocks of the cache it fills."""
    made, prompt = adapters(model), prompts_of(1, 3)[0] * 40
    prompt = prompt[:40]
    with open_engine(model, made.__getitem__, slots=7) as engine:
        handles = {
            user: [engine.submit(Request(prompt, user, max_new=8)) for _ in range(2)]
            for user in [*USERS, None]
        }
        found = {user: answers(asked) for user, asked in handles.items()}
    for user, ids in found.items():
        assert ids == [alone(model, made.get(user), prompt, 8)] * 2
    assert len({tuple(ids[0]) for ids in found.values()}) > 5, "the adapters change the answer"


def test_sampled_text_does_not_depend_on_the_company(model):
    made = adapters(model)
    requests = [
        Request(p, USERS[i % 7], max_new=12, sampling=Sampling(1.3, top_p=0.95, top_k=40, seed=i))
        for i, p in enumerate(prompts_of(8, 5))
    ]
    with open_engine(model, made.__getitem__) as engine:
        one_by_one = [engine.submit(r).result(60).ids for r in requests]
        together = answers([engine.submit(r) for r in requests])
        other = engine.submit(
            Request(requests[0].prompt, USERS[0], max_new=12, sampling=Sampling(1.3, seed=99))
        )
        assert other.result(60).ids != one_by_one[0]
    assert one_by_one == together


def test_tokens_stream_in_order_and_listeners_hear_the_end(model):
    heard: list = []
    with open_engine(model, adapters(model).__getitem__) as engine:
        handle = engine.submit(
            Request((5, 6, 7), USERS[0], max_new=6, sampling=Sampling(logprobs=2)), listener=heard.append
        )
        streamed = list(handle)
    assert [t.id for t in streamed] == handle.result().ids
    assert all(t.logprob <= 0 and len(t.top) == 2 and t.top[0][0] == t.id for t in streamed)
    assert heard[:-1] == streamed and isinstance(heard[-1], Completion)


def test_a_listener_that_fails_hurts_nobody(model):
    def broken(event):
        raise ValueError("no")

    with open_engine(model, adapters(model).__getitem__) as engine:
        assert len(engine.submit(Request((5,), max_new=3), listener=broken).result(30).ids) == 3
        assert len(engine.submit(Request((5,), max_new=3)).result(30).ids) == 3


def test_faults_of_one_user_stay_with_that_user(model):
    made = adapters(model)
    name = model.projections[0].name
    made["nan"] = {name: (torch.full((1, 32), torch.nan), torch.ones(32, 1))}
    made["wide"] = {name: (torch.ones(9, 32), torch.ones(32, 9))}
    made["other"] = {"layers.9.q_proj": (torch.ones(1, 32), torch.ones(32, 1))}

    def adapter_of(user):
        if user == "broken":
            raise OSError("disk at /secret")
        return made[user]

    with open_engine(model, adapter_of) as engine:
        good = engine.submit(Request((3, 4, 5), "u1", max_new=8))
        for user, error, words in [
            ("nobody", UnknownUserError, "no adapter"), ("nan", ModelError, "not finite"), ("wide", ModelError, "rank 9"),
            ("other", ModelError, "does not fit"), ("broken", ModelError, "OSError"),
        ]:  # fmt: skip
            with pytest.raises(error, match=words) as caught:
                engine.submit(Request((3,), user, max_new=2)).result(30)
            assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
        assert engine.submit(Request((3, 4, 5), "u1", max_new=8)).result(30).ids == good.result(30).ids
    assert good.result().ids == alone(model, made["u1"], (3, 4, 5), 8)


def test_a_changed_adapter_is_used_after_forget(model):
    made = adapters(model)
    with open_engine(model, lambda user: made[user]) as engine:
        before = engine.submit(Request((9, 8, 7), "u0", max_new=8)).result(30).ids
        made["u0"] = made["u3"]
        assert engine.submit(Request((9, 8, 7), "u0", max_new=8)).result(30).ids == before
        engine.forget("u0")
        after = engine.submit(Request((9, 8, 7), "u0", max_new=8)).result(30).ids
    assert after == alone(model, made["u3"], (9, 8, 7), 8) != before


def test_a_forgotten_adapter_leaves_the_bank(model):
    with open_engine(model, adapters(model).__getitem__) as engine:
        handle = engine.submit(Request((9, 8, 7), "u0", max_new=30))
        next(iter(handle))
        engine.forget("u0")
        handle.result(30)
        engine.submit(Request((9,), max_new=1)).result(30)
        assert not engine._bank.parameters.flat.any()


def test_a_load_in_progress_keeps_its_slot_when_its_request_is_cancelled(model):
    made, gate = adapters(model), threading.Event()

    def adapter_of(user):
        if user == "u0":
            assert gate.wait(30)
        return made[user]

    with open_engine(model, adapter_of, slots=1) as engine:
        first = engine.submit(Request((4, 5), "u0", max_new=4))
        time.sleep(0.05)
        first.cancel()
        second = engine.submit(Request((4, 5), "u1", max_new=6))
        time.sleep(0.05)
        assert first.result(30).finish == "cancelled" and not second.done
        gate.set()
        ids = second.result(30).ids
    assert ids == alone(model, made["u1"], (4, 5), 6)


def test_loading_does_not_stop_the_batch(model):
    gate = threading.Event()

    def adapter_of(user):
        assert gate.wait(30)
        return {}

    with open_engine(model, adapter_of) as engine:
        cold = engine.submit(Request((4, 5), "cold", max_new=4))
        assert len(engine.submit(Request((4, 5), max_new=20)).result(30).ids) == 20
        assert not cold.done
        gate.set()
        assert len(cold.result(30).ids) == 4


def test_impossible_requests_are_refused_at_once(model):
    with open_engine(model, {}.__getitem__, max_new=50, cache_tokens=64) as engine:
        for request, words in [
            (Request(()), "empty"), (Request((1,), max_new=0), "max_new"), (Request((1,), max_new=51), "1 to 50"),
            (Request((1,) * 60, max_new=40), "room for"),
            (Request((97,), max_new=5), "outside"), (Request((-1,), max_new=5), "outside"),
        ]:  # fmt: skip
            with pytest.raises(DataError, match=words):
                engine.submit(request)


def test_a_full_queue_says_so_and_close_ends_everything(model):
    gate = threading.Event()
    with open_engine(model, lambda user: gate.wait(30) and {}, waiting=1) as engine:
        handles = [engine.submit(Request((1,), "u", max_new=2)) for _ in range(7)]
        with pytest.raises(BusyError, match="try again"):
            engine.submit(Request((1,), "u"))
        engine.close()
        gate.set()
    assert {h.result(30).finish for h in handles} == {"cancelled"}
    with pytest.raises(BusyError, match="closed"):
        engine.submit(Request((1,)))
    assert model.model.config._attn_implementation == "sdpa"


def test_draining_finishes_what_is_under_way(model):
    engine = open_engine(model, {}.__getitem__)
    handles = [engine.submit(Request((3, 4), max_new=9)) for _ in range(10)]
    engine.close(drain=True)
    assert [len(h.result(0).ids) for h in handles] == [9] * 10
    assert not engine.alive


def test_a_failed_step_fails_its_requests_and_the_next_ones_work(model, caplog):
    with open_engine(model, {}.__getitem__) as engine:
        step, engine._runner.step = engine._runner.step, lambda pick: 1 / 0
        with pytest.raises(ModelError, match="ZeroDivisionError"):
            engine.submit(Request((3, 4), max_new=3)).result(30)
        engine._runner.step = step
        assert len(engine.submit(Request((3, 4), max_new=3)).result(30).ids) == 3
        assert engine.stats().failed_steps == 1
    assert "ZeroDivisionError" in caplog.text


def test_the_model_says_so_when_it_belongs_to_an_engine(model):
    with (
        open_engine(model, {}.__getitem__),
        pytest.raises(RuntimeError, match="belongs to a generation engine"),
    ):
        alone(model, None, (3, 4), 2)
    assert len(alone(model, None, (3, 4), 2)) == 2


def test_nothing_of_a_user_is_logged(model, caplog):
    caplog.set_level("DEBUG")
    with open_engine(model, adapters(model).__getitem__) as engine:
        ids = engine.submit(Request((91, 92, 93), "u5", max_new=5)).result(30).ids
        with pytest.raises(UnknownUserError):
            engine.submit(Request((91, 92, 93), "secret-name", max_new=5)).result(30)
    ours = " ".join(r.getMessage() for r in caplog.records)
    assert "91, 92" not in ours and "secret-name" not in ours and str(ids) not in ours
