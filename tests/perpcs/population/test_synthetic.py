from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from perpcs.config.schema import SyntheticConfig
from perpcs.errors import DataError
from perpcs.population.movies import CUES, FILLER
from perpcs.population.synthetic import (
    archetype_of,
    similarity,
    similarity_matrix,
    synthetic_population,
)
from perpcs.population.tasks import MOVIE_TAGS, get_task

CFG = SyntheticConfig(archetypes=3, base_users=6, candidates=7, targets=5, history=20, queries=4)
TAG_OF = {word: tag for tag, words in CUES.items() for word in words.split()}


def carried(text):
    return {TAG_OF[word] for word in text.split() if word in TAG_OF}


def test_vocabularies_are_disjoint():
    words = [word for cues in CUES.values() for word in cues.split()]
    assert set(CUES) == set(MOVIE_TAGS) and len(words) == len(set(words)) == 15 * 7
    assert not set(words) & set(FILLER)
    assert len(set(FILLER)) == len(FILLER)


def test_shape_of_the_population():
    population = synthetic_population(CFG, seed=0)
    assert [len(population.split(s)) for s in ("base", "candidates", "targets")] == [6, 7, 5]
    for split, user in population.users():
        assert len(user.history) == 20 and len(user.queries) == (4 if split == "targets" else 0)
        assert len(user.preferences) == 15 and archetype_of(user, CFG) == int(user.id[-3:]) % 3
    assert population.targets[2].id == "target-002"
    assert len({item.id for _, u in population.users() for item in u.history}) == 18 * 20


def test_users_pick_the_carried_tag_that_they_like_most():
    task = get_task("LaMP-2M")
    for _, user in synthetic_population(replace(CFG, noise=0.0), seed=1).users():
        score = dict(zip(MOVIE_TAGS, user.preferences, strict=True))
        shown = [task.example(item) for item in user.history]
        shown += [(task.variable(q.input), q.gold) for q in user.queries]
        for text, tag in shown:
            assert 8 <= len(text.split()) <= 16 and 2 <= len(carried(text)) <= 4
            assert tag == max(carried(text), key=score.__getitem__)


def test_noise_changes_labels_only_and_as_often_as_asked():
    cfg = replace(CFG, history=200, noise=0.5)
    clean = synthetic_population(replace(cfg, noise=0.0), seed=0)
    noisy = synthetic_population(cfg, seed=0)
    pairs = [
        (a, b)
        for (_, u), (_, v) in zip(clean.users(), noisy.users(), strict=True)
        for a, b in zip(u.history, v.history, strict=True)
    ]
    assert all(a.get("description") == b.get("description") for a, b in pairs)
    assert all(b.get("tag") in carried(b.get("description")) for _, b in pairs)
    changed = np.mean([a.get("tag") != b.get("tag") for a, b in pairs])
    # A slip picks the best tag anyway in 1/2, 1/3 or 1/4 of cases: .5 * mean(1/2, 2/3, 3/4) = .32
    assert 0.28 < changed < 0.36


def test_same_seed_same_population_and_another_seed_another():
    assert synthetic_population(CFG, seed=3) == synthetic_population(CFG, seed=3)
    assert synthetic_population(CFG, seed=3) != synthetic_population(CFG, seed=4)


def test_growing_one_part_leaves_the_rest_as_it_was():
    small = synthetic_population(CFG, seed=0)
    large = synthetic_population(replace(CFG, base_users=9, candidates=9, history=30, queries=6), seed=0)
    assert [u.preferences for u in large.base[:6]] == [u.preferences for u in small.base]
    for a, b in zip(small.targets, large.targets, strict=True):
        assert a.preferences == b.preferences
        assert a.history == b.history[:20] and a.queries == b.queries[:4]


def test_like_minded_users_agree_more():
    population = synthetic_population(replace(CFG, candidates=12), seed=0)
    matrix = similarity_matrix(population.targets, population.candidates)
    assert matrix.shape == (5, 12)
    same = np.array([[(i - j) % 3 == 0 for j in range(12)] for i in range(5)])
    assert matrix[same].min() > matrix[~same].max() + 0.1
    assert matrix[same].mean() > 0.85


def test_similarity_is_a_symmetric_probability_and_spread_lowers_it():
    a, b = synthetic_population(CFG, seed=0).candidates[:4:3]
    assert similarity(a, a) == 1.0 and similarity(a, b) == similarity(b, a)
    clones = synthetic_population(replace(CFG, spread=0.0), seed=0).candidates
    strangers = synthetic_population(replace(CFG, spread=2.0), seed=0).candidates
    assert similarity(clones[0], clones[3]) == 1.0 > similarity(a, b) > similarity(strangers[0], strangers[3])


def test_similarity_is_what_histories_show():
    """Two users' labels of the same movies agree as often as the number says."""
    cfg = replace(CFG, history=400, noise=0.0, candidates=2, archetypes=2)
    a, b = synthetic_population(cfg, seed=5).candidates
    score = dict(zip(MOVIE_TAGS, b.preferences, strict=True))
    agree = [max(carried(i.get("description")), key=score.__getitem__) == i.get("tag") for i in a.history]
    assert np.mean(agree) == pytest.approx(similarity(a, b), abs=0.08)


def test_no_single_tag_answers_for_everybody():
    users = synthetic_population(replace(CFG, archetypes=6, candidates=24), seed=0).candidates
    counts = Counter(item.get("tag") for u in users for item in u.history)
    assert counts.most_common(1)[0][1] < 0.3 * counts.total()


def test_real_users_have_no_known_similarity(movies):
    with pytest.raises(DataError, match="user u: has no known preferences"):
        similarity(movies, movies)
    assert similarity_matrix([], [movies]).shape == (0, 1)
