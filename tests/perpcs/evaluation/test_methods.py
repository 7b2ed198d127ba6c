"""The rows of a comparison."""

import pytest

from perpcs.errors import ConfigError
from perpcs.evaluation.methods import METHODS, get_methods, needed_rules, others, recipe_name
from perpcs.population.prompts import PLAIN, Context


@pytest.mark.parametrize("users", [2, 3, 10, 57])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_everybody_has_another_as_stand_in_and_is_one_once(users, seed):
    ids = [f"u{i}" for i in range(users)]
    stand_in = others(ids, seed=seed)
    assert stand_in.keys() == set(ids) == set(stand_in.values())
    assert all(user != other for user, other in stand_in.items())
    assert others(ids[::-1], seed=seed) == stand_in


def test_stand_ins_depend_on_the_seed_and_one_user_stands_in_for_itself():
    ids = [f"u{i}" for i in range(20)]
    assert others(ids, seed=0) != others(ids, seed=1)
    assert others(["alone"], seed=0) == {"alone": "alone"}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["adapted", "gradent"], r"^evaluate.methods: 'gradent' is no method; did you mean gradient\?$"),
        (["zzz"], r"^evaluate.methods: 'zzz' is no method; use some of base, adapted, "),
        (["rag", "pag", "rag"], r"^evaluate.methods: 'rag' is named twice; name it once$"),
    ],
)
def test_names_that_cannot_be_meant(names, told):
    with pytest.raises(ConfigError, match=told):
        get_methods(names)


def test_methods_come_in_the_order_asked():
    assert [m.name for m in get_methods(["uniform", "base"])] == ["uniform", "base"]


def test_recipes_that_methods_share_are_made_once():
    methods = get_methods(["oppu", "gradient_global", "other_assembly", "per_pcs_once", "per_pcs_exact"])
    rules = [("gradient_global", "concat"), ("gate", "average"), ("gate", "concat")]
    assert needed_rules(methods) == rules
    assert len({recipe_name(*rule) for rule in rules}) == 3


def test_what_each_row_shows():
    shown = {
        name: METHODS[name].context(retrieve=2) for name in ("rag", "oppu_rag", "pag", "oppu_pag", "oppu")
    }
    assert shown["rag"] == shown["oppu_rag"] == Context(retrieve=2)
    assert shown["pag"] == shown["oppu_pag"] == Context(profile=True)
    assert shown["oppu"] == PLAIN
    assert [METHODS[f"rag_{k}"].context(retrieve=3).retrieve for k in (1, 2, 4)] == [1, 2, 4]


def test_a_rule_is_given_exactly_where_a_recipe_is_used():
    assert all(bool(m.rule) == (m.uses in ("recipe", "warm")) for m in METHODS.values())
    assert all(bool(m.kind) == (m.uses == "kind") for m in METHODS.values())
    assert {m.name for m in METHODS.values() if m.of_another} == {"other_oppu", "other_assembly"}
