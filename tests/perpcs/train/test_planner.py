"""The planner's arithmetic against measured memory, and retries that lose nobody."""

import logging
from dataclasses import replace

import pytest
import torch

from perpcs.config.schema import LoraConfig, TrainConfig
from perpcs.errors import ConfigError
from perpcs.lora.bank import AdapterBank
from perpcs.lora.inject import BankedModel
from perpcs.lora.kernel import Slots
from perpcs.lora.sources import BankSource
from perpcs.population.batches import collate
from perpcs.population.prompts import Encoded
from perpcs.train.fitting import PackFitter, device_memory, model_planner, out_of_memory, stricter
from perpcs.train.pack import Passes
from perpcs.train.planner import ROW_BYTES, Plan, Shape, plan
from perpcs.train.sharers import train_own

LLAMA_2_7B = Shape(
    parameters=6_738_415_616,
    width=2,
    hidden=4096,
    inner=11008,
    vocab=32000,
    adapted=32,
    row=8 * 2 * 4096 * 4 * 32,
)
GIB = 2**30


def test_llama_2_7b_on_80_gib():
    """docs/performance.md quotes these."""
    got = plan(LLAMA_2_7B, memory=80 * GIB, users=64, batch=6, length=512, label=16)
    assert got.users == 64
    assert 8_000 < got.passes.tokens < 12_000
    assert not got.passes.again
    assert "pack of 64 of 64 users: base 12.55 GiB, 192.00 MiB per user" in got.why


def test_less_memory_means_shorter_passes_then_fewer_users_then_recomputing():
    plans = [
        plan(LLAMA_2_7B, memory=m * GIB, users=64, batch=6, length=512, label=16) for m in (80, 40, 24, 16)
    ]
    assert [p.users for p in plans] == sorted((p.users for p in plans), reverse=True)
    assert plans[0].users == 64 > plans[2].users >= 1
    assert all(p.passes.tokens >= 512 for p in plans)
    assert plans[-1].passes.again
    with pytest.raises(ConfigError, match=r"memory: 14.00 GiB do not hold the base with one user"):
        plan(LLAMA_2_7B, memory=14 * GIB, users=64, batch=6, length=512, label=16)


def kept_bytes(model, bank, batch, slots):
    """Bytes of the distinct tensors that autograd keeps for the backward pass, weights and factors left out."""
    known = {w.untyped_storage().data_ptr() for w in [*model.model.parameters(), bank.parameters.flat]}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in known:
            kept[t.untyped_storage().data_ptr()] = (t, t.untyped_storage().nbytes())
        return t

    bank.parameters.start_training()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        logits = model.label_logits(batch, source=BankSource(bank, slots), whole=True)
    bank.parameters.end_training()
    return sum(size for _, size in kept.values()), logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [2, 4])
def test_bytes_per_token_are_what_autograd_keeps(make_llama, layers, dtype):
    model = BankedModel(
        make_llama(hidden=64, layers=layers).to(dtype), ("q_proj", "k_proj", "v_proj", "o_proj"), pad_id=0
    )
    bank = AdapterBank(model.projections, 8, rank=4, scale=1.0)
    bank.parameters.flat.normal_()
    batch = collate([Encoded(tuple(range(3, 61)), (3, 4))] * 8, pad_id=0)
    measured, _ = kept_bytes(model, bank, batch, Slots(torch.arange(8)))
    shape = Shape.of(model.model, model.projections, rank=4)
    assert shape.adapted == layers
    expected = 8 * 60 * shape.adapted * shape.layer_token
    assert 0.75 * expected < measured < 1.1 * expected


def test_a_row_is_what_the_bank_and_optimiser_hold(make_llama):
    model = BankedModel(make_llama(), ("q_proj", "v_proj"), pad_id=0)
    shape = Shape.of(model.model, model.projections, rank=4)
    bank = AdapterBank(model.projections, 3, rank=4, scale=1.0)
    assert shape.row == bank.parameters.flat.shape[1]
    assert ROW_BYTES * shape.row == 6 * bank.parameters.flat[0].nbytes


def of(users):
    """A fitter whose plan takes this many users at once."""
    return PackFitter(lambda _: Plan(users, Passes(), ""))


def test_halving_loses_nobody_and_changes_no_result(banked, make_user, caplog):
    users = [make_user(f"u{i}", items=3 + i) for i in range(7)]
    lora, config = LoraConfig(rank=4, alpha=4.0), TrainConfig(steps=4, batch=2)
    sizes = []

    def train(pack, passes):
        sizes.append(len(pack))
        if len(pack) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return train_own(banked, pack, lora, config, seed=0, passes=passes)

    with caplog.at_level(logging.WARNING):
        records, failed = of(7).train(users, train)
    assert not failed
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert [r.user_id for r in records] == [u.user_id for u in users]
    assert "out of memory with 7 users: trying packs of 3" in caplog.text
    plain = train_own(banked, users, lora, config, seed=0)
    assert [r.loss for r in records] == pytest.approx([r.loss for r in plain], abs=1e-5)


def test_one_user_gets_shorter_passes_then_recomputing_and_at_last_its_name(make_user):
    big, small, tried = make_user("big", items=4), make_user("small", items=4), []

    def train(pack, passes):
        tried.append((pack[0].user_id, passes.tokens, passes.again))
        if pack[0].user_id == "big" or not passes.again:
            raise MemoryError
        return [pack[0].user_id]

    done, failed = of(1).train([small, big, small], train)
    assert done == ["small", "small"]
    assert "user big: does not fit into memory alone" in failed["big"]
    limits = [tokens for user, tokens, again in tried if user == "small" and not again]
    assert limits == sorted(limits, reverse=True) or limits[0] == 0
    assert tried[-1] == ("small", tried[-2][1], True)


def test_other_errors_are_not_taken_for_memory(make_user):
    assert out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    )
    assert out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert out_of_memory(
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    )
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))

    def train(pack, passes):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        of(1).train([make_user("u", items=2)], train)


def test_what_was_learnt_holds_for_later_packs(make_user):
    users, sizes = [make_user(f"u{i}", items=3) for i in range(4)], []

    def train(pack, passes):
        sizes.append(len(pack))
        if len(pack) > 2:
            raise MemoryError
        return [u.user_id for u in pack]

    fitter = of(4)
    assert fitter.train(users, train)[0] == fitter.train(users, train)[0]
    assert sizes == [4, 2, 2, 2, 2]
    assert stricter(Passes(tokens=9), Passes(again=True)) == Passes(tokens=9, again=True)
    assert stricter(Passes(tokens=9), Passes(tokens=5)).tokens == 5


def test_one_who_cannot_be_trained_costs_the_others_nothing(banked, make_user):
    users = [make_user("a", items=3), replace(make_user("b", items=1), examples=()), make_user("c", items=3)]

    def train(pack, passes):
        return train_own(
            banked, pack, LoraConfig(rank=4), TrainConfig(steps=2, batch=2), seed=0, passes=passes
        )

    records, failed = of(2).train(users, train)
    assert [r.user_id for r in records] == ["a", "c"]
    assert "no history item" in failed["b"]


def test_a_pack_is_planned_for_its_own_users_and_memory(banked, make_user, caplog):
    users = [make_user(f"u{i}", items=5) for i in range(8)]
    sizes = []

    def train(pack, passes):
        sizes.append((len(pack), passes))
        return []

    def planner(memory):
        return model_planner(banked, rank=4, batch=6, memory=memory)

    enough = device_memory(torch.device("cpu"), share=0.5)
    with caplog.at_level(logging.INFO):
        PackFitter(planner(enough)).train(users, train)
    assert sizes.pop() == (8, Passes())
    assert "pack of 8 of 8 users" in caplog.text
    shape = Shape.of(banked.model, banked.projections, rank=4)
    PackFitter(planner(shape.base * 2 + 40 * ROW_BYTES * shape.row)).train(users, train)
    assert sizes[0] != (8, Passes()), "less memory: fewer users or shorter passes"
    assert sum(size for size, _ in sizes) == 8
    with pytest.raises(ConfigError, match="do not hold the base with one user"):
        PackFitter(planner(shape.base)).train(users, train)
