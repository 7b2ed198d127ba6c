"""Synthetic populations of other structure, and what targets' histories are changed to."""

from dataclasses import replace

import numpy as np
import pytest

from perpcs.config.schema import PopulationConfig, SplitConfig, SyntheticConfig
from perpcs.population.movies import TITLES
from perpcs.population.splits import load_population, shifted
from perpcs.population.synthetic import fresh_items, similarity_matrix, synthetic_population
from perpcs.population.tasks import MOVIE_TAGS

CFG = SyntheticConfig(archetypes=3, base_users=6, candidates=30, targets=12, history=20, queries=4)


def likeness(structure):
    population = synthetic_population(replace(CFG, structure=structure), seed=0)
    return similarity_matrix(population.targets, population.candidates)


def test_the_nearest_user_is_near_with_archetypes_less_with_factors_and_far_when_all_are_distinct():
    nearest = {s: likeness(s).max(1).mean() for s in ("archetypes", "continuous", "distinct")}
    assert nearest["archetypes"] > nearest["continuous"] + 0.03 > nearest["distinct"] + 0.1


def test_continuous_preferences_have_no_gap_between_like_and_unlike():
    groups, smooth = (np.sort(likeness(s).ravel()) for s in ("archetypes", "continuous"))
    assert np.diff(groups).max() > 2 * np.diff(smooth)[5:-5].max()


def test_histories_of_unlike_length_are_within_bounds_and_many_are_short():
    population = synthetic_population(replace(CFG, history=40, history_least=3), seed=0)
    lengths = [len(u.history) for _, u in population.users()]
    assert min(lengths) >= 3 and max(lengths) <= 40
    assert 7 < np.median(lengths) < 16


def test_titles_name_the_two_best_liked_tags_in_the_users_own_form():
    population = synthetic_population(replace(CFG, noise=0.0), seed=0, task="LaMP-5")
    for user in population.candidates[:6]:
        forms = {
            next(
                f for f in TITLES if any(f.format(a=a, b=b) == title for a in MOVIE_TAGS for b in MOVIE_TAGS)
            )
            for title in (item.get("title") for item in user.history)
        }
        assert len(forms) == 1
    assert population.targets[0].queries[0].gold not in MOVIE_TAGS


def test_fresh_items_are_the_same_users_and_none_of_the_history():
    users = synthetic_population(CFG, seed=0).candidates[:3]
    made = fresh_items(users, CFG, seed=0, task="LaMP-2M", count=8)
    for user in users:
        assert len(made[user.id]) == 8
        assert not {i.fields for i in made[user.id]} & {i.fields for i in user.history}
    assert made == fresh_items(users, CFG, seed=0, task="LaMP-2M", count=8)


def test_a_shift_replaces_the_asked_share_by_one_other_users_items():
    users = synthetic_population(CFG, seed=0).targets
    for before, after in zip(users, shifted(users, 0.5, seed=0), strict=True):
        changed = [(a, b) for a, b in zip(before.history, after.history, strict=True) if a != b]
        assert len(changed) == 10 and all(a.id == b.id for a, b in changed)
        givers = {u.id for u in users for _, b in changed if b.fields in {i.fields for i in u.history}}
        assert len(givers) == 1 and before.id not in givers
        assert after.queries == before.queries
    assert shifted(users, 0.0, seed=0) == users


@pytest.mark.parametrize("count", [1, 3])
def test_a_cold_start_cuts_targets_only(count):
    cfg = PopulationConfig(synthetic=CFG, split=SplitConfig(target_history=count))
    population = load_population(cfg, seed=0)
    whole = load_population(PopulationConfig(synthetic=CFG), seed=0)
    assert all(len(u.history) == count for u in population.targets)
    assert [u.history for u in population.targets] == [u.history[-count:] for u in whole.targets]
    assert population.candidates == whole.candidates
