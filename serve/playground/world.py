"""What the playground shows before anybody has typed: the prompt's wording, and made-up people to try.

The people are drawn anew from the synthetic population's world and are in none of its splits; an experiment on real users
has none to show.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from perpcs.config import ExperimentConfig
from perpcs.population.prompts import MARKER
from perpcs.population.synthetic import new_users
from perpcs.population.tasks import Task, get_task
from perpcs.records import User
from serve.experiment import read_experiment
from storage.layout import Paths

PEOPLE, QUESTIONS = 3, 8


@lru_cache(maxsize=4)
def world_of(experiment: str) -> dict[str, Any]:
    """For the page; made once, because anybody may ask. Raises ConfigError where there is no experiment."""
    cfg = read_experiment(Paths.of(experiment).config)
    task = get_task(cfg.population.task)
    return {
        "before": task.prompt("", cfg.prompt.instruction),
        "after": MARKER,
        "users": [_shown(f"made-up person {i + 1}", user, task) for i, user in enumerate(_people(cfg))],
    }


def _people(cfg: ExperimentConfig) -> tuple[User, ...]:
    if cfg.population.source != "synthetic":
        return ()
    return new_users(cfg.population.synthetic, seed=cfg.seed, task=cfg.population.task, count=PEOPLE)


def _shown(name: str, user: User, task: Task) -> dict[str, Any]:
    return {
        "name": name,
        "history": [dict(item.fields) for item in user.history],
        "questions": [
            {"text": task.variable(query.input), "gold": query.gold} for query in user.queries[:QUESTIONS]
        ],
    }
