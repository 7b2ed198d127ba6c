"""A made-up population about movies (LaMP-2M, LaMP-5) whose users' preferences, and so their likeness, are known.

A user has a score per tag and labels a movie with the carried tag that scores highest. Scores are drawn around a
few archetypes, from a few continuous factors, or for each user alone (`structure`). Every user has generators of
their own, so more users, items or queries leave the others be.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from perpcs.config.schema import SyntheticConfig
from perpcs.errors import DataError
from perpcs.population.movies import carried_tags, description, title
from perpcs.population.tasks import MOVIE_TAGS, Task, get_task
from perpcs.records import Item, Population, Query, User
from perpcs.seeds import rng

_TRUTH_MOVIES = 4096
_PREFIX = {"base": "base", "candidates": "candidate", "targets": "target"}

Fresh = dict[str, tuple[Item, ...]]
"""User id -> items."""


def synthetic_population(cfg: SyntheticConfig, *, seed: int, task: str = "LaMP-2M") -> Population:
    """Base users, candidates and targets, archetypes dealt out in turn; only targets have queries.

    task: LaMP-2M, where outputs are tags, or LaMP-5, where they are titles of several words.
    """
    world = _World(cfg, get_task(task), seed)
    counts = {"base": cfg.base_users, "candidates": cfg.candidates, "targets": cfg.targets}
    splits = {
        split: tuple(world.user(f"{_PREFIX[split]}-{i:03d}", i) for i in range(count))
        for split, count in counts.items()
    }
    return Population(task=task, **splits)


def new_users(cfg: SyntheticConfig, *, seed: int, task: str, count: int) -> tuple[User, ...]:
    """Users of the same world that are in no split, with history and queries: to try things on."""
    world = _World(cfg, get_task(task), seed)
    return tuple(world.user(f"target-new-{i:03d}", i) for i in range(count))


def archetype_of(user: User, cfg: SyntheticConfig) -> int:
    """The archetype a synthetic user was drawn around; for reports, which sort users by it."""
    return int(user.id.rsplit("-", 1)[1]) % cfg.archetypes


class _World:
    """What all users of one population have in common."""

    def __init__(self, cfg: SyntheticConfig, task: Task, seed: int) -> None:
        self.cfg, self.task, self.seed = cfg, task, seed
        self.archetypes = [
            rng(seed, "synthetic", "archetype", i).normal(size=len(MOVIE_TAGS)) for i in range(cfg.archetypes)
        ]
        loadings = rng(seed, "synthetic", "factors").normal(size=(cfg.factors, len(MOVIE_TAGS)))
        self.loadings = loadings / cfg.factors**0.5

    def user(self, user_id: str, index: int) -> User:
        """One user, from generators of its own."""
        taste = self._taste(user_id, index)
        history = tuple(
            self._item(f"{user_id}/{i:03d}", *shown)
            for i, shown in enumerate(self._labelled(user_id, "history", taste, self._length(user_id)))
        )
        queries: tuple[Query, ...] = ()
        if user_id.startswith("target"):
            queries = tuple(
                Query(f"{user_id}/q{i:03d}", self.task.prompt(text, "full"), output)
                for i, (text, output) in enumerate(
                    self._labelled(user_id, "queries", taste, self.cfg.queries)
                )
            )
        return User(user_id, history, queries, tuple(taste.tolist()))

    def fresh(self, user_id: str, taste: Sequence[float], count: int) -> tuple[Item, ...]:
        """Further items of a user that are not in the history."""
        shown = self._labelled(user_id, "fresh", np.asarray(taste), count)
        return tuple(self._item(f"{user_id}/f{i:03d}", *pair) for i, pair in enumerate(shown))

    def _taste(self, user_id: str, index: int) -> np.ndarray:
        draw, tags = rng(self.seed, "synthetic", "taste", user_id), len(MOVIE_TAGS)
        if self.cfg.structure == "archetypes":
            return self.archetypes[index % self.cfg.archetypes] + self.cfg.spread * draw.normal(size=tags)
        if self.cfg.structure == "continuous":
            place = draw.normal(size=self.cfg.factors)
            return place @ self.loadings + self.cfg.spread * draw.normal(size=tags)
        return draw.normal(size=tags)

    def _length(self, user_id: str) -> int:
        """History items: `history`, or drawn evenly on a logarithmic scale from `history_least` on."""
        least, most = self.cfg.history_least, self.cfg.history
        if not least:
            return most
        drawn = least * (most / least) ** rng(self.seed, "synthetic", "length", user_id).random()
        return round(drawn)

    def _labelled(self, user_id: str, what: str, taste: np.ndarray, count: int) -> list[tuple[str, str]]:
        generator = rng(self.seed, "synthetic", what, user_id)
        return [self._movie(taste, generator) for _ in range(count)]

    def _movie(self, taste: np.ndarray, generator: np.random.Generator) -> tuple[str, str]:
        """(description, output). Noise is drawn whether it is used or not, so that its knob changes outputs only."""
        tags = carried_tags(generator)
        text = description(tags, generator)
        slip, other = generator.random(), int(generator.integers(len(tags)))
        liked = sorted(tags, key=lambda tag: -taste[tag])
        if slip < self.cfg.noise:
            liked = [tags[other], *(tag for tag in liked if tag != tags[other])]
        return text, MOVIE_TAGS[liked[0]] if self.task.labels else title(liked, taste)

    def _item(self, item_id: str, text: str, output: str) -> Item:
        given = {self.task.source: text, self.task.target: output}
        return Item(item_id, tuple((name, given[name]) for name in self.task.fields))


def fresh_items(users: Sequence[User], cfg: SyntheticConfig, *, seed: int, task: str, count: int) -> Fresh:
    """Per synthetic user, items of the same taste that nobody was trained on; for audits."""
    world = _World(cfg, get_task(task), seed)
    return {user.id: world.fresh(user.id, user.preferences, count) for user in users}


@lru_cache(maxsize=1)
def _truth_movies() -> np.ndarray:
    """[movies, tags] bool: the fixed movies on which users are compared."""
    generator = rng(0, "synthetic", "truth")
    carried = np.zeros((_TRUTH_MOVIES, len(MOVIE_TAGS)), bool)
    for row in carried:
        row[carried_tags(generator)] = True
    return carried


def _picks(users: Sequence[User]) -> np.ndarray:
    """[users, movies] int8: the tag each user would give each movie, without noise."""
    unknown = next((u.id for u in users if not u.preferences), None)
    if unknown is not None:
        raise DataError(f"user {unknown}: has no known preferences; only a synthetic population has")
    carried = _truth_movies()
    return np.stack([np.where(carried, u.preferences, -np.inf).argmax(-1).astype(np.int8) for u in users])


def similarity_matrix(users_a: Sequence[User], users_b: Sequence[User]) -> np.ndarray:
    """[A, B]: probability that two users give a random movie the same tag. DataError for real users."""
    if not users_a or not users_b:
        return np.zeros((len(users_a), len(users_b)))
    picks_b = _picks(users_b)
    return np.stack([(row == picks_b).mean(1) for row in _picks(users_a)])


def similarity(a: User, b: User) -> float:
    """Probability that two synthetic users give a random movie the same tag; 1 for a user and themselves."""
    return float(similarity_matrix([a], [b])[0, 0])
