"""What costs need to know of users, counted once where their histories are tokenised: a few whole numbers per user.

They are counted in slices over the cluster, and costs are made of them afterwards by one process, from sums that are
the same however the users were cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from jobs.loading import base_folder
from jobs.spread import slices, spread
from perpcs.config import ExperimentConfig
from perpcs.evaluation.cost import Load, ModelSize, history_bytes
from perpcs.evaluation.methods import Method, Uses, recipe_name
from perpcs.evaluation.runner import asked
from perpcs.model.base import load_tokenizer
from perpcs.population.profile import label_profile
from perpcs.population.prompts import Context, Prompter
from perpcs.population.tasks import get_task
from perpcs.records import User
from storage.lance_pieces import LancePieces
from storage.layout import Paths
from storage.population import read_task, read_users

if TYPE_CHECKING:
    from jobs.evaluator import Evaluator

SHARERS = 256
"""In a slice when their histories are counted."""


@dataclass(frozen=True)
class Reading:
    """One target."""

    load: Load
    """Of the whole known history."""
    recent: Load
    """Of what assembly reads: the newest `assembly.max_items`."""
    history_bytes: int
    profile_bytes: int
    questions: int
    question_tokens: Mapping[Context, int]
    """Of all questions' prompts, by what they show."""
    steps: Mapping[Uses, int]
    """Of the user's own adapters: own, warm."""
    recipes: Mapping[str, tuple[int, int]]
    """By name: bytes, and number of codes."""

    @property
    def per_item(self) -> float:
        """Tokens of an item, mean."""
        return self.load.tokens / self.load.examples


@dataclass(frozen=True)
class Facts:
    """All that the costs of an experiment's methods follow from."""

    cfg: ExperimentConfig
    paths: Paths
    readings: Sequence[Reading]
    size: ModelSize
    adapter: int
    """Parameters of one user's LoRA."""
    fingerprint: str
    version: int | None
    """Of the pool; None for its newest."""

    @cached_property
    def pieces(self) -> LancePieces:
        """The pool."""
        return LancePieces.open(self.paths, self.fingerprint, version=self.version)

    @cached_property
    def sharers(self) -> list[Load]:
        """What each sharer's history costs to read once."""
        ids = [user_id for user_id in self.pieces.ids if user_id]
        parts = slices(ids, [1] * len(ids), most=SHARERS)
        found = spread(load_slices, self.cfg, self.paths, parts=parts, cfg=self.cfg.ray)
        return [load for part in found for load in part]


def read_target(evaluator: Evaluator, user: User, methods: Sequence[Method]) -> Reading:
    """Count one target for these methods."""
    cfg, prompter = evaluator.cfg, evaluator.prompter
    queries = asked(user, limit=cfg.evaluate.max_queries)
    contexts = {method.context(retrieve=cfg.evaluate.retrieve) for method in methods}
    recipes = {}
    for method in methods:
        if method.rule:
            recipe = evaluator.recipe(method, user.id)
            recipes[recipe_name(method.rule, method.merge)] = recipe.nbytes, recipe.codes.size
    trained: set[Uses] = {method.uses for method in methods if method.uses in ("own", "warm")}
    return Reading(
        load=Load.of(prompter.history(user)),
        recent=recent_load(prompter, user, cfg.assembly.max_items),
        history_bytes=history_bytes(user),
        profile_bytes=len(label_profile(prompter.task, user.known, cfg.prompt.profile_labels).encode()),
        questions=len(queries),
        question_tokens={
            context: sum(len(prompter.query(user, query, context=context).prompt) for query in queries)
            for context in contexts
        },
        steps={uses: evaluator.opened.steps(uses)[user.id] for uses in trained},
        recipes=recipes,
    )


def recent_load(prompter: Prompter, user: User, max_items: int) -> Load:
    """What assembly reads of a user's history costs to read once."""
    return Load.of(prompter.history(user, max_items=max_items))


def load_slices(cfg: ExperimentConfig, paths: Paths, parts: Sequence[Sequence[str]]) -> list[list[Load]]:
    """The loads of each slice of user ids."""
    tokenizer = load_tokenizer(str(base_folder(paths.base)))  # no weights: nothing is computed
    prompter = Prompter(get_task(read_task(paths.population)), tokenizer, cfg.prompt)
    return [
        [Load.of(prompter.history(user)) for user in read_users(paths.population, part)] for part in parts
    ]
