"""What a sweep's file may vary, and the points that come of it."""

import math

import pytest

from perpcs.errors import ConfigError
from perpcs.sweep.config import load_sweep
from perpcs.sweep.space import Axis, draws, grid

SWEEP = """
seed: 3
lora: {rank: 4, alpha: "${lora.rank}"}
sweep:
  space:
    method: [gradient, per_pcs_once]
    assembly.top_k: [1, 2, 4]
"""


@pytest.fixture
def load(tmp_path):
    def load(*overrides, text=SWEEP):
        (tmp_path / "sweep.yaml").write_text(text)
        return load_sweep(tmp_path / "sweep.yaml", overrides)

    return load


def test_a_grid_has_every_combination_once(load):
    points = list(grid(load().axes))
    assert len(points) == 6 and len({tuple(p.items()) for p in points}) == 6
    assert points[0] == {"method": "gradient", "assembly.top_k": 1}


def test_draws_stay_in_their_ranges_and_begin_alike(load):
    axes = (
        Axis("a", low=1e-4, high=1e-2, log=True),
        Axis("b", low=2, high=5, whole=True),
        Axis("c", values=("x", "y")),
        Axis("d", low=1, high=64, log=True, whole=True),
    )
    many = list(draws(axes, count=300, seed=1))
    assert many[:20] == list(draws(axes, count=20, seed=1)) != list(draws(axes, count=20, seed=2))
    assert all(1e-4 <= p["a"] <= 1e-2 and 1 <= p["d"] <= 64 for p in many)
    assert {p["b"] for p in many} == {2, 3, 4, 5} and {p["c"] for p in many} == {"x", "y"}
    below = sum(math.log10(p["a"]) < -3 for p in many)
    assert 100 < below < 200, "even on a logarithmic scale"


def test_overrides_reach_the_sweep_its_space_and_the_experiment(load):
    sweep = load("sweep.trials=7", "sweep.space.lora.rank=[2, 8]", "ray.workers=3", "sweep.search=random")
    assert sweep.config.trials == 7 and sweep.draft.config().ray.workers == 3
    assert [axis.key for axis in sweep.axes] == ["method", "assembly.top_k", "lora.rank"]
    assert sweep.draft.config({"lora.rank": 8}).lora.alpha == 8.0, "what refers to a varied key follows it"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sweep.space.assembly.topk=[1]", "assembly.topk: no such key; did you mean assembly.top_k"),
        ("sweep.space.assembly.top_k=[1, 0]", "assembly.top_k: 0 must be at least 1"),
        ("sweep.space.assembly.top_k=[1.5]", "1.5 is not a whole number"),
        ("sweep.space.assembly.top_k=[2, 2]", "2 is named twice"),
        ("sweep.space.assembly.top_k=3", "3 is no list of values"),
        ("sweep.space.assembly.top_k={low: 1, high: 4}", "a grid needs a list"),
        ("sweep.space.assembly.top_k={low: 4, high: 4}", "low 4 is not below high 4"),
        ("sweep.space.assembly.top_k={low: 1, hi: 4}", "hi: no such key of a range"),
        ("sweep.space.lora.targets={low: 1, high: 2}", "has no range"),
        ("sweep.space.method=[gradent]", "did you mean gradient"),
        ("sweep.space.ray.workers=[1, 2]", "cannot be varied: it changes where the work runs"),
        ("sweep.space.seed=[1, 2]", "list the seeds in sweep.seeds"),
        ("experiment=s3://bucket/sweep", "experiment: s3://bucket/sweep: a sweep needs a folder"),
        ("sweep.reuse=[s3://bucket/x]", "sweep.reuse: s3://bucket/x: a sweep needs a folder"),
        ("sweep.trails=3", "trails: no such key; did you mean trials"),
        ("sweep.seeds=[1, 1]", "must be different whole numbers"),
        ("sweep.metric=acuracy", "did you mean accuracy"),
        ("sweep.metric=gold_loss", "sweeps score what is written"),
        ("sweep.rungs=[1, 2]", "have no effect without sweep.scheduler=asha"),
        ("sweep.scheduler=asha", "must rise, from 1 on"),
        ("sweep.trials", "is not key=value"),
        ("lora.rnak=3", "did you mean rank|did you mean lora.rank"),
    ],
)
def test_what_no_experiment_could_have_is_refused_in_one_line(load, override, told):
    with pytest.raises(ConfigError, match=told) as refused:
        load(override)
    assert "\n" not in str(refused.value)


def test_rungs_may_not_be_an_axis_too(load):
    asha = ("sweep.scheduler=asha", "sweep.rungs=[1, 2]")
    with pytest.raises(ConfigError, match="also an axis"):
        load(*asha, "sweep.rung_key=assembly.top_k")
    with pytest.raises(ConfigError, match="no key with whole numbers"):
        load(*asha, "sweep.rung_key=pool.train.lr")
    with pytest.raises(ConfigError, match="no section sweep"):
        load(text="seed: 1")
