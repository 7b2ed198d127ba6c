"""Costs against a few lines of arithmetic, and operations against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perpcs.evaluation.cost import Load, ModelSize, backward_flops, break_even, forward_flops, total
from perpcs.model.size import model_size
from perpcs.population.prompts import Encoded

SIZE = ModelSize(linear=1000, head=50, attention=7)


def test_operations_by_hand():
    items = Load.of([Encoded((1,) * 6, (2,) * 4), Encoded((1,) * 3, (2,))])
    # 2 t linear + 2 l head + 2 t^2 attention
    expected = 2 * 14 * 1000 + 2 * 5 * 50 + 2 * (100 + 16) * 7
    assert forward_flops(items, SIZE) == expected
    assert backward_flops(items, SIZE) == expected
    assert forward_flops(items, SIZE, adapter=30) == expected + 2 * 14 * 30
    assert backward_flops(items, SIZE, adapter=30) == expected + 4 * 14 * 30


def test_loads_of_parts_add_up_to_that_of_the_whole():
    items = [Encoded((1,) * n, (2,) * (n % 3)) for n in range(1, 7)]
    assert sum((Load.of([item]) for item in items), Load()) == Load.of(items[:2]) + Load.of(items[2:])
    assert Load.of(items).tokens == sum(len(e.prompt) + len(e.label) for e in items)


def test_the_base_is_counted_as_torch_counts_it(make_llama):
    model = make_llama()
    model.set_attn_implementation("eager")  # fused attention is not counted on a CPU
    size = model_size(model)
    ids = torch.randint(3, 90, (1, 40))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, use_cache=False)
    counted = counter.get_total_flops()
    # torch counts all pairs of positions, ours the half that a causal model looks at; every position meets the head.
    ours = forward_flops(Load.of([Encoded((), (1,) * 40)]), size) + 2 * 40 * 40 * size.attention
    assert ours == pytest.approx(counted, rel=0.02)


def test_break_even_is_the_first_user_number_that_is_cheaper():
    for shared, each, other in [(100.0, 1.0, 11.0), (99.0, 1.0, 11.0), (0.0, 1.0, 2.0)]:
        n = break_even(shared=shared, each=each, other=other)
        assert total(n, each=each, shared=shared) < total(n, each=other)
        assert n == 1 or total(n - 1, each=each, shared=shared) >= total(n - 1, each=other)
    assert break_even(shared=1.0, each=2.0, other=2.0) is None
