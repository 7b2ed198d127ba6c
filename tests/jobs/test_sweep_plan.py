"""Which trials a sweep has, what they need trained, and what they share."""

import pytest

from jobs.sweep_plan import check_effects, make_trial, plan, seen_before, settings_of, trains_any, units
from jobs.sweep_tune import Proposals
from perpcs.errors import ConfigError
from perpcs.evaluation.methods import METHODS
from perpcs.sweep.config import load_sweep


@pytest.fixture
def load(tmp_path):
    def load(space, *overrides):
        lines = "".join(f"    {key}: {value}\n" for key, value in space.items())
        (tmp_path / "s.yaml").write_text(f"experiment: {tmp_path}/run\nsweep:\n  space:\n{lines}")
        return load_sweep(tmp_path / "s.yaml", overrides)

    return load


def test_assembly_settings_share_one_experiment_per_seed(load):
    sweep = load(
        {"method": "[gradient, per_pcs]", "assembly.top_k": "[1, 2]", "assembly.sharers": "[2, 0]"},
        "sweep.seeds=[0, 4]",
    )
    made = plan(sweep)
    assert len(made.trials) == 16 and len(made.experiments) == 2 and not trains_any(sweep)
    assert {trial.cfg.seed for trial in made.trials} == {0, 4}


def test_training_settings_get_an_experiment_each_where_the_method_needs_them(load):
    sweep = load(
        {"method": "[gradient, oppu, adapted]", "pool.train.lr": "[0.1, 0.2]", "own.steps": "[1, 2]"}
    )
    made, kinds = plan(sweep), {}
    for trial in made.trials:
        kinds.setdefault(trial.method.name, set()).add(trial.cfg.experiment)
    assert {name: len(folders) for name, folders in kinds.items()} == {"gradient": 2, "oppu": 2, "adapted": 1}
    assert len(made.points) == 12 and len(made.trials) == 5 and trains_any(sweep)


def test_settings_that_a_method_does_not_read_are_one_trial(load):
    sweep = load(
        {
            "method": "[gradient, per_pcs_once]",
            "assembly.temperature": "[1.0, 2.0]",
            "assembly.gradient_temperature": "[0.1, 0.2]",
        }
    )
    assert len(plan(sweep).trials) == 4


def test_a_trial_is_the_same_whatever_else_is_varied(load):
    alone = plan(load({"method": "[gradient]", "assembly.top_k": "[1, 3]"})).trials
    more = plan(
        load(
            {"method": "[gradient, oppu]", "assembly.top_k": "[3, 5]", "assembly.sharing_ratio": "[0.5, 1.0]"}
        )
    ).trials
    assert {t.id for t in alone} & {t.id for t in more}, "top_k 3 of everything is in both"


def test_a_default_that_came_with_other_answers_is_part_of_a_trial(load):
    """Trials of these rules from before the setting are others; those of rules that do not read it stay."""
    settings = {
        name: settings_of(plan(load({"method": f"[{name}]"})).trials[0].cfg, METHODS[name])
        for name in ("reranked", "reranked_fitted", "gradient")
    }
    told = {name: {key for key in found if key.startswith("assembly.")} for name, found in settings.items()}
    assert told == {
        "reranked": {"assembly.sure_items"},
        "reranked_fitted": {"assembly.sure_items", "assembly.fit_epochs"},
        "gradient": set(),
    }


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (
            {"method": "[gradient]", "assembly.temperature": "[1, 2]"},
            "no effect on gradient; .*gradient_temperature",
        ),
        ({"method": "[gradient]", "own.lr": "[0.1, 0.2]"}, "own.lr: has no effect"),
        ({"method": "[gradient]", "evaluate.batch": "[1, 2]"}, "evaluate.batch: has no effect"),
    ],
)
def test_an_axis_without_effect_is_refused(load, space, told):
    with pytest.raises(ConfigError, match=told):
        check_effects(load(space))


def test_units_keep_to_one_experiment_and_take_turns(load):
    trials = plan(
        load({"method": "[gradient]", "assembly.top_k": "[1, 2, 3, 4, 5]"}, "sweep.seeds=[0, 1]")
    ).trials
    cut = units(trials, size=2)
    assert [len(unit) for unit in cut] == [2, 2, 2, 2, 1, 1]
    assert all(len({t.cfg.experiment for t in unit}) == 1 for unit in cut)
    assert [unit[0].cfg.seed for unit in cut] == [0, 1, 0, 1, 0, 1]
    assert sorted(t.id for unit in cut for t in unit) == sorted(t.id for t in trials)


def test_optuna_proposes_in_the_space_together_and_learns_from_what_was_seen(load):
    space = {
        "method": "[gradient, per_pcs_once]",
        "assembly.top_k": "[1, 2, 3, 5, 8]",
        "assembly.gradient_temperature": "{low: 0.01, high: 1.0, log: true}",
    }
    sweep = load(space, "sweep.search=optuna")
    worth = lambda point: point["assembly.top_k"] - abs(point["assembly.gradient_temperature"] - 0.1)  # noqa: E731
    search, best = Proposals(sweep, trials=42, size=4, seen=[]), []
    for number in range(11):
        proposed = search.suggest(str(number))
        assert len(proposed["points"]) == (4 if number < 10 else 2)
        for point in proposed["points"]:
            make_trial(sweep, point, 0)  # every proposal is a possible setting
        values = [worth(point) for point in proposed["points"]]
        search.on_trial_complete(str(number), {"values": values})
        best.append(max(values))
    assert search.suggest("end") == "FINISHED"
    assert sum(best[6:]) / 5 > sum(best[:2]) / 2
    rows = [
        {
            "values": '{"method": "gradient", "assembly.top_k": 8, "assembly.gradient_temperature": 0.1}',
            "value": v,
        }
        for v in (0.4, 0.6)
    ]
    seen = seen_before(sweep, [*rows, {"values": '{"method": "gradient"}', "value": 1.0}])
    assert [value for _, value in seen] == [0.5]
    assert len(Proposals(sweep, trials=2, size=2, seen=seen).inner._ot_study.trials) == 1
