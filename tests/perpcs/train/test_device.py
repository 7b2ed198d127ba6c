"""Everything that training and keys compute is where the model is, and no step asks the device for a value.

There may be no GPU here. Torch's `meta` device stands in for one: it computes shapes and types, refuses an operation over
tensors of two devices, and has no values to ask for.
"""

import pytest
import torch

from perpcs.config.schema import TrainConfig
from perpcs.keys.gradient import gradient_queries, make_sketches
from perpcs.lora.bank import AdapterBank, initialise
from perpcs.lora.inject import BankedModel
from perpcs.lora.mixture import Mixture
from perpcs.train.pack import Passes, train_adapters, train_gates, train_weights

CONFIG = TrainConfig(steps=1, batch=2)


@pytest.fixture
def results_come_back(monkeypatch):
    """What is copied to the host at the end is zeros."""
    from transformers import masking_utils

    plain = torch.Tensor.cpu

    def cpu(tensor, *args, **kwargs):
        return (
            torch.zeros(tensor.shape, dtype=tensor.dtype)
            if tensor.is_meta
            else plain(tensor, *args, **kwargs)
        )

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    # transformers asks once per forward whether anything is padded.
    monkeypatch.setattr(masking_utils, "fast_all", lambda mask: False)


def on_meta(make_llama, dtype, layers):
    return BankedModel(
        make_llama().to(dtype).to("meta"), ("q_proj", "v_proj", "down_proj"), pad_id=0, layers=layers
    )


@pytest.mark.parametrize(
    ("dtype", "layers", "passes"),
    [
        (torch.float32, 0, Passes()),
        (torch.bfloat16, 0, Passes()),
        (torch.bfloat16, 1, Passes(tokens=40, again=True)),
    ],
)
def test_a_pack_trains_where_the_model_is(make_llama, make_user, results_come_back, dtype, layers, passes):
    model, users = on_meta(make_llama, dtype, layers), [make_user("u", items=4), make_user("v", items=2)]
    bank = AdapterBank(model.projections, 2, rank=4, scale=1.0, scales=(1.0, 2.0), device=model.device)
    initialise(bank, ["u", "v"], seed=0, shared=False)
    made = train_adapters(model, bank, users, CONFIG, seed=0, dropout=0.1, passes=passes)
    assert made.steps == (1, 1) and bank.parameters.flat.is_meta
    gates, _ = train_gates(model, bank, users, CONFIG, seed=0, passes=passes)
    assert gates.flat.is_meta and gates.flat.dtype == torch.float32
    pieces = {
        p.name: (bank.factors(p.name)[0].detach(), bank.factors(p.name)[1].detach())
        for p in model.projections
    }
    start = torch.zeros(2, len(model.projections), 1)
    weights, _ = train_weights(model, Mixture(pieces, 4, 1.0), start, users, CONFIG, seed=0, passes=passes)
    assert weights.is_meta and weights.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_queries_are_made_where_the_model_is(make_llama, make_user, results_come_back, dtype):
    model = on_meta(make_llama, dtype, 0)
    sketches = make_sketches(model.projections, 4, device=model.device)
    queries = gradient_queries(model, [make_user("u", items=4).examples], sketches)
    assert all(query.is_meta and query.dtype == torch.float32 for query in queries.values())
