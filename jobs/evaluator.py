"""Methods over some of an experiment's targets; what all of them share is opened once, when it is first needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from jobs.experiment import read_marker, stage_info
from jobs.kinds import open_kind, read_state
from jobs.loading import base_folder, open_base, open_pieces, open_prompter
from jobs.readings import Facts, read_target
from jobs.train_warm import warm_pool
from perpcs.assembly.merge import adapter_from_recipe
from perpcs.config import ExperimentConfig
from perpcs.errors import DataError, StoreError
from perpcs.evaluation.cost import adapter_parameters
from perpcs.evaluation.methods import Method, Uses, others, recipe_name
from perpcs.evaluation.runner import (
    Answers,
    Ask,
    Asking,
    answer,
    answers_of,
    asked,
    gold_examples,
    gold_losses,
)
from perpcs.lora.bank import Adapter
from perpcs.lora.peft_files import CONFIG, WEIGHTS, read_peft
from perpcs.model.base import Base, banked, load_causal_lm
from perpcs.model.size import model_size
from perpcs.population.prompts import PLAIN, Prompter
from perpcs.records import Recipe, SharerAdapter, User
from perpcs.train.kinds import Kind, KindModel
from storage.files import join, read_bytes
from storage.lance_pieces import LancePieces
from storage.layout import Paths
from storage.pool import Pool
from storage.population import read_ids, read_split
from storage.recipes import RecipeStore
from storage.view import PoolView


class Opened:
    """What the evaluation of any target needs."""

    def __init__(self, cfg: ExperimentConfig, paths: Paths) -> None:
        self.cfg, self.paths = cfg, paths
        self.base = open_base(cfg, paths)
        self.prompter = open_prompter(cfg, paths, self.base)
        self.stand_in = others(read_ids(paths.population, "targets"), seed=cfg.seed)
        self.kind, self.trained = cache(self._kind), cache(self._trained)
        self.steps = cache(self._steps)

    def release(self) -> None:
        """Forget the models beside the adapted base."""
        self.__dict__.pop("raw", None)
        self.kind.cache_clear()

    def _steps(self, uses: Uses) -> Mapping[str, int]:
        """Of training, by target."""
        return {info.user_id: info.steps for info in self.trained(uses).info()}

    @cached_property
    def version(self) -> int:
        """Of the pool that the recipes were made from."""
        return int(stage_info(self.paths, "assemble", wanted_by="evaluate")["pool_version"])

    @cached_property
    def pieces(self) -> LancePieces:
        """The pool at that version."""
        return open_pieces(self.paths, self.base, version=self.version, checksums=self.cfg.pool.checksums)

    def _trained(self, uses: Uses) -> PoolView:
        """The targets' own adapters: plainly trained, or from their assembly on."""
        if uses == "warm":
            return Pool.open(warm_pool(self.cfg, self.paths)).view()
        read_marker(self.paths, "train_own", wanted_by="evaluate")
        return Pool.open(self.paths.own).view()

    @cached_property
    def raw(self) -> tuple[Base, Prompter]:
        """The base before task adaptation."""
        model, tokenizer = load_causal_lm(str(base_folder(self.paths.raw_base)), dtype=self.cfg.base.dtype)
        base = banked(model, tokenizer, mark="", device=self.cfg.base.device, targets=self.cfg.lora.targets)
        return base, Prompter(self.prompter.task, tokenizer, self.cfg.prompt)

    @cached_property
    def joint(self) -> Adapter:
        """The one adapter trained on all sharers' data."""
        read_marker(self.paths, "train_joint", wanted_by="evaluate")
        lora, base = self.cfg.lora, self.base
        with TemporaryDirectory() as folder:  # the experiment may be in an object store
            for name in (CONFIG, WEIGHTS):
                (Path(folder) / name).write_bytes(read_bytes(join(self.paths.joint, name)))
            return read_peft(
                Path(folder),
                base.model.projections,
                scale=lora.alpha / lora.rank,
                fingerprint=base.fingerprint,
            ).adapter

    def _kind(self, kind: Kind) -> KindModel:
        read_marker(self.paths, f"train_{kind}", wanted_by="evaluate")
        return open_kind(self.cfg, self.paths, self.base, kind)


class Evaluator:
    """Methods over `users`, by default all targets of the experiment."""

    def __init__(
        self,
        cfg: ExperimentConfig,
        paths: Paths,
        *,
        users: Sequence[User] | None = None,
        opened: Opened | None = None,
    ) -> None:
        self.cfg, self.paths = cfg, paths
        self.opened = opened or Opened(cfg, paths)
        self.base, self.prompter, self.stand_in = self.opened.base, self.opened.prompter, self.opened.stand_in
        self.users = tuple(read_split(paths.population, "targets") if users is None else users)
        self._own: dict[tuple[Uses, str], SharerAdapter] = {}
        self._recipes: dict[str, dict[str, Recipe]] = {}

    def answers(self, method: Method) -> Answers:
        """Answers of one method to every query of every user."""
        if method.kind:
            return self._kind_answers(method.kind)
        base, prompter, how = self._how(method)
        constrained = self.cfg.evaluate.decoding == "constrained"
        return answer(base, prompter, self.users, how, constrained=constrained)

    def losses(self, method: Method) -> list[float]:
        """Nats per token of what every user really answered, in the order of `answers`.

        Raises DataError when one is not finite: the adapter is broken.
        """
        if method.kind:
            found = self._kind_losses(method.kind)
        else:
            base, prompter, how = self._how(method)
            found = gold_losses(base, prompter, self.users, how)
        whose = [user.id for user in self.users for _ in asked(user, limit=self.cfg.evaluate.max_queries)]
        for user_id, loss in zip(whose, found, strict=True):
            if not math.isfinite(loss):
                raise DataError(
                    f"method {method.name}: the loss of what user {user_id} answered is {loss}; its training went astray: "
                    "lower the learning rate and train again in a new folder, or set evaluate.likelihood=false"
                )
        return found

    def _how(self, method: Method) -> tuple[Base, Prompter, Asking]:
        """The model that a method asks, and how."""
        base, prompter = self.opened.raw if method.uses == "raw" else (self.base, self.prompter)
        lookup = {
            "raw": None,
            "none": None,
            "own": self.own_adapter,
            "warm": partial(self.own_adapter, uses="warm"),
            "joint": lambda user_id: self.opened.joint,
            "recipe": partial(self._recipe_adapter, method),
        }
        chosen = lookup[method.uses]
        how = Asking(
            context=method.context(retrieve=self.cfg.evaluate.retrieve),
            adapter_of=None if chosen is None else (lambda u: chosen(self.whose(method, u))),
            scale=self.cfg.lora.alpha / self.cfg.lora.rank,
            batch=self.cfg.evaluate.batch,
            max_queries=self.cfg.evaluate.max_queries,
        )
        return base, prompter, how

    def release(self) -> None:
        """Forget the users' adapters."""
        self._own.clear()

    def whose(self, method: Method, user_id: str) -> str:
        """The user whose adapter a method gives to a user."""
        return self.stand_in[user_id] if method.of_another else user_id

    def facts(self, methods: Sequence[Method]) -> Facts:
        """What the costs of these methods follow from."""
        return Facts(
            self.cfg,
            self.paths,
            readings=[read_target(self, user, methods) for user in self.users],
            size=model_size(self.base.model.model),
            adapter=adapter_parameters(self.base.model.projections, self.cfg.lora.rank),
            fingerprint=self.base.fingerprint,
            version=self.opened.version if any(method.rule for method in methods) else None,
        )

    def recipe(self, method: Method, user_id: str) -> Recipe:
        """A target's stored recipe for a method. Raises StoreError where there is none, or when it is not of the version
        that is evaluated."""
        name = recipe_name(method.rule, method.merge)
        held = self._recipes.setdefault(name, {})
        if user_id not in held:
            held |= RecipeStore(self.paths.recipes).of(self._together(user_id), name)
        recipe = held.get(user_id) or RecipeStore(self.paths.recipes).get(user_id, name)
        if recipe.pool_version != self.opened.version:
            raise StoreError(
                f"{self.paths.recipes}: the recipe of {user_id!r} is of pool version {recipe.pool_version} (rebuilt after "
                f"a withdrawal?), the others are of {self.opened.version}; run python -m jobs.pipeline to assemble all anew"
            )
        return recipe

    def own(self, user_id: str, *, uses: Uses = "own") -> SharerAdapter:
        """A target's own adapter as it was committed; `uses`: own or warm."""
        if (uses, user_id) not in self._own:
            for adapter in self.opened.trained(uses).adapters(self._together(user_id)):
                self._own[uses, adapter.user_id] = adapter
        return self._own[uses, user_id]

    def own_adapter(self, user_id: str, *, uses: Uses = "own") -> Adapter:
        """The factors of `own`."""
        pieces = self.own(user_id, uses=uses).pieces
        return {name: (torch.from_numpy(p.a), torch.from_numpy(p.b)) for name, p in pieces.items()}

    def _together(self, user_id: str) -> list[str]:
        """Who is read in one go with a user: all users here, or all their stand-ins."""
        ids = [user.id for user in self.users]
        if user_id not in ids:
            ids = [self.stand_in[other] for other in ids]
        return ids if user_id in ids else [user_id]

    def _recipe_adapter(self, method: Method, user_id: str) -> Adapter:
        return adapter_from_recipe(self.recipe(method, user_id), self.opened.pieces)

    def _kind_answers(self, kind: Kind) -> Answers:
        model, prompter, found = self.opened.kind(kind), self.prompter, list[str]()
        for user in self.users:
            model.load(read_state(self.paths, kind, user.id))
            queries = asked(user, limit=self.cfg.evaluate.max_queries)
            found += self._texts(model, [prompter.query(user, query).prompt for query in queries])
        return answers_of(self.users, found, max_queries=self.cfg.evaluate.max_queries)

    def _kind_losses(self, kind: Kind) -> list[float]:
        model, found = self.opened.kind(kind), list[float]()
        for user in self.users:
            model.load(read_state(self.paths, kind, user.id))
            asks = [Ask(0, user, q, PLAIN) for q in asked(user, limit=self.cfg.evaluate.max_queries)]
            found += model.label_losses(gold_examples(self.prompter, asks))
        return found

    def _texts(self, model: KindModel, prompts: Sequence[tuple[int, ...]]) -> list[str]:
        labels, tokenizer = self.prompter.task.labels, self.base.tokenizer
        if self.cfg.evaluate.decoding == "constrained":
            chosen = model.choose(prompts, [self.prompter.label(label) for label in labels])
            return [labels[i] for i in chosen]
        most, eos = self.cfg.prompt.max_label, int(tokenizer.eos_token_id)
        tokens = model.answer(prompts, max_new=most, eos_id=eos)
        return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
