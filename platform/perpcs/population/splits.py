"""From a configuration to a population: users read or made, limited, and split: nobody is in two splits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from perpcs.config.schema import PopulationConfig, SplitConfig
from perpcs.errors import DataError
from perpcs.population.files import find_json
from perpcs.population.lamp import origin, read_lamp
from perpcs.population.oppu import read_oppu
from perpcs.population.synthetic import synthetic_population
from perpcs.population.tasks import get_task
from perpcs.records import SPLITS, Population, User
from perpcs.seeds import rng

log = logging.getLogger(__name__)


def load_population(cfg: PopulationConfig, *, seed: int) -> Population:
    """The population of an experiment, limited as `cfg.split` says and validated.

    lamp: users of the train files become base and candidates by a seeded shuffle, those of dev targets.
    oppu: base.json, candidates.json and targets.json are the splits. DataError for anything unusable.
    """
    task = get_task(cfg.task)
    if cfg.source == "synthetic":
        raw = synthetic_population(cfg.synthetic, seed=seed, task=task.name)
        base, candidates, targets = (_limit(raw.split(name), cfg.split, name) for name in SPLITS)
    elif cfg.source == "oppu":
        files = [read_oppu(find_json(Path(cfg.path), name), task=task) for name in SPLITS]
        base, candidates, targets = (_limit(u, cfg.split, n) for u, n in zip(files, SPLITS, strict=True))
    else:
        targets = _limit(read_lamp(cfg.path, split="dev", task=task), cfg.split, "dev users")
        train = _without(read_lamp(cfg.path, split="train", task=task), targets, cfg.path)
        base, candidates = split_train(_limit(train, cfg.split, "train users"), cfg.split.base, seed=seed)
    targets = tuple(
        keep_newest(user, cfg.split.target_history) for user in _busiest(targets, cfg.split.targets)
    )
    targets = shifted(targets, cfg.split.irrelevant, seed=seed)
    population = Population(task.name, base, candidates, targets)
    validate(population)
    log.info("%s: %s", task.name, ", ".join(f"{len(population.split(n))} {n}" for n in SPLITS))
    return population


def validate(population: Population) -> None:
    """DataError unless every split has users, nobody is there twice, and every target can be asked.

    Users that are questions of one person count as that person.
    """
    home: dict[str, str] = {}
    for name in SPLITS:
        if not population.split(name):
            fix = "lower population.split.min_history or add users"
            raise DataError(f"population {population.task}: {name}: is empty; {fix}")
        _nobody_twice(population, name, home)
    for user in population.targets:
        if not user.queries or not user.known:
            missing = "queries" if not user.queries else "history before the first query"
            where = f"population {population.task}: target user {user.id}"
            raise DataError(f"{where}: has no {missing}; leave the user out")


def _nobody_twice(population: Population, name: str, home: dict[str, str]) -> None:
    """Notes in `home` where each person is; DataError for one who is elsewhere too, or here twice."""
    users, where = population.split(name), f"population {population.task}"
    twice, count = Counter(user.id for user in users).most_common(1)[0]
    if count > 1:
        raise DataError(f"{where}: {name}: user {twice} stands twice; merge the two")
    for person in map(origin, users):
        if home.setdefault(person, name) != name:
            fix = "keep the user in one split"
            raise DataError(f"{where}: user {person}: is in {home[person]} and in {name}; {fix}")


def split_train(
    users: Sequence[User], fraction: float, *, seed: int
) -> tuple[tuple[User, ...], tuple[User, ...]]:
    """(base, candidates) by a shuffle that depends on seed and ids only; one person stays on one side."""
    people = sorted({origin(user) for user in users})
    order = rng(seed, "split", "train").permutation(len(people)).tolist()
    count = min(max(round(fraction * len(people)), 1), max(len(people) - 1, 1))
    chosen = {people[i] for i in order[:count]}
    base = tuple(user for user in users if origin(user) in chosen)
    return base, tuple(user for user in users if origin(user) not in chosen)


def keep_newest(user: User, count: int) -> User:
    """The user with its newest `count` known items (0: all) and what only later queries see."""
    start = max(0, len(user.known) - count) if count else 0
    if not start:
        return user
    queries = (replace(q, visible=None if q.visible is None else q.visible - start) for q in user.queries)
    return replace(user, history=user.history[start:], queries=tuple(queries))


def shifted(users: Sequence[User], fraction: float, *, seed: int) -> tuple[User, ...]:
    """Users in whose history that fraction of items, drawn at random, is another user's (behaviour shift).

    Everybody's items come from one other user, in a seeded random cycle. Ids stay the user's, so no item is there twice.
    """
    if not fraction:
        return tuple(users)
    order = rng(seed, "shift", "cycle").permutation(len(users)).tolist()
    giver = {order[i]: users[order[(i + 1) % len(order)]] for i in range(len(order))}
    return tuple(_mixed(user, giver[i], fraction, seed=seed) for i, user in enumerate(users))


def _mixed(user: User, other: User, fraction: float, *, seed: int) -> User:
    draw = rng(seed, "shift", user.id)
    places = draw.permutation(len(user.history))[: round(fraction * len(user.history))].tolist()
    history = list(user.history)
    for place, source in zip(places, draw.integers(len(other.history), size=len(places)), strict=True):
        history[place] = replace(history[place], fields=other.history[source].fields)
    return replace(user, history=tuple(history))


def _limit(users: Sequence[User], cfg: SplitConfig, name: str) -> tuple[User, ...]:
    """Users with enough history, cut to its newest part; queries asked too early go before their users do."""
    kept, early = [], 0
    for user in users:
        late = tuple(q for q in user.queries if q.visible is None or q.visible >= cfg.min_history)
        early += len(user.queries) - len(late)
        if len(user.history) >= cfg.min_history and (late or not user.queries):
            kept.append(keep_newest(replace(user, queries=late), cfg.max_history))
    if early:
        log.info("%s: left out %d queries with under %d items before them", name, early, cfg.min_history)
    if len(kept) < len(users):
        log.info("%s: left out %d users with under %d items", name, len(users) - len(kept), cfg.min_history)
    return tuple(kept)


def _without(train: Sequence[User], targets: Sequence[User], path: str) -> tuple[User, ...]:
    held = {origin(user) for user in targets}
    kept = tuple(user for user in train if origin(user) not in held)
    if train and not kept:
        raise DataError(
            f"{path}: user_id: every user of the train files is in the dev files; use a user-based split"
        )
    if len(kept) < len(train):
        log.warning("%s: left out %d train users who are targets", path, len(train) - len(kept))
    return kept


def _busiest(users: tuple[User, ...], count: int) -> tuple[User, ...]:
    """At most `count` users, those with the most queries, in their given order; 0 keeps all."""
    if not count or len(users) <= count:
        return users
    ranked = sorted(range(len(users)), key=lambda i: (-len(users[i].queries), users[i].id))
    return tuple(users[i] for i in sorted(ranked[:count]))
