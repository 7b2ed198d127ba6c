"""Stage 8: answer the targets' queries with every method and write results.json."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from jobs.answers import Kept, answers_key, keep_answers, kept_answers
from jobs.cli import stage_main
from jobs.experiment import Info, Stage, read_marker, stage_info
from jobs.kinds import open_kind, read_state
from jobs.loading import base_folder, open_base, open_pieces, open_prompter, own_adapters
from jobs.memory import peak_memory
from jobs.preflight import check_methods
from jobs.prices import Prices
from jobs.runtime import run_remote
from jobs.summary import choices_of, experiment_of, prepared_memory, priced_cost
from jobs.train_warm import warm_pool
from perpcs.assembly.merge import adapter_from_recipe
from perpcs.config import ExperimentConfig
from perpcs.errors import StoreError
from perpcs.evaluation.comparisons import SummaryOptions
from perpcs.evaluation.methods import METHODS, Method, get_methods, others, recipe_name
from perpcs.evaluation.results import MethodOutput, to_text
from perpcs.evaluation.runner import Answers, answer, asked
from perpcs.evaluation.summary import build_results
from perpcs.lora.bank import Adapter
from perpcs.lora.peft_files import CONFIG, WEIGHTS, read_peft
from perpcs.model.base import Base, banked, load_causal_lm
from perpcs.population.prompts import Prompter
from perpcs.population.tasks import get_task
from perpcs.records import Recipe, SharerAdapter, User
from perpcs.train.kinds import Kind, KindModel
from storage.files import join, read_bytes, write_text
from storage.lance_pieces import LancePieces
from storage.layout import Paths
from storage.population import read_population, read_split, read_users
from storage.recipes import RecipeStore

log = logging.getLogger(__name__)


class Evaluator:
    """Methods over the targets of one experiment; opens what a method needs when it is first needed."""

    def __init__(self, cfg: ExperimentConfig, paths: Paths) -> None:
        self.cfg, self.paths = cfg, paths
        self.users: tuple[User, ...] = read_split(paths.population, "targets")
        self.base = open_base(cfg, paths)
        self.prompter = open_prompter(cfg, paths, self.base)
        self.stand_in = others([u.id for u in self.users], seed=cfg.seed)
        self._own: dict[str, SharerAdapter] | None = None
        self._pieces: LancePieces | None = None
        self._recipes: dict[str, dict[str, Recipe]] = {}

    def answers(self, method: Method) -> Answers:
        """Answers of one method to every query of every target."""
        if method.kind:
            return self._kind_answers(method.kind)
        base, prompter = self._raw() if method.uses == "raw" else (self.base, self.prompter)
        lookup = {
            "raw": None,
            "none": None,
            "own": self.own_adapter,
            "warm": self._warm_adapter,
            "joint": self._joint_adapter,
            "recipe": partial(self._recipe_adapter, method),
        }
        chosen = lookup[method.uses]
        adapter_of = (
            None if chosen is None else (lambda u: chosen(self.stand_in[u] if method.of_another else u))
        )
        return answer(
            base, prompter, self.users,
            context=method.context(retrieve=self.cfg.evaluate.retrieve), adapter_of=adapter_of,
            scale=self.cfg.lora.alpha / self.cfg.lora.rank, batch=self.cfg.evaluate.batch,
            max_queries=self.cfg.evaluate.max_queries,
            constrained=self.cfg.evaluate.decoding == "constrained",
        )  # fmt: skip

    @cached_property
    def prices(self) -> Prices:
        """What tokens cost here."""
        return Prices(self.cfg, self.base, self.prompter, self.users, sharers=self._sharers)

    def _sharers(self) -> Sequence[User]:
        return read_users(self.paths.population, [user_id for user_id in self.pieces.ids if user_id])

    def recipe(self, method: Method, user_id: str) -> Recipe:
        """A target's stored recipe for a method. Raises StoreError where there is none, or when it is not of the version
        that is evaluated."""
        name, store = recipe_name(method.rule, method.merge), RecipeStore(self.paths.recipes)
        if name not in self._recipes:
            self._recipes[name] = {recipe.user_id: recipe for recipe in store.all(name)}
        recipe = self._recipes[name].get(user_id) or store.get(user_id, name)
        if recipe.pool_version != self.pieces.version:
            raise StoreError(
                f"{self.paths.recipes}: the recipe of {user_id!r} is of pool version {recipe.pool_version} (rebuilt after "
                f"a withdrawal?), the others are of {self.pieces.version}; run python -m jobs.pipeline to assemble all anew"
            )
        return recipe

    @property
    def pieces(self) -> LancePieces:
        """The pool at the version that the recipes were made from."""
        if self._pieces is None:
            version = stage_info(self.paths, "assemble", wanted_by="evaluate")["pool_version"]
            checksums = self.cfg.pool.checksums
            self._pieces = open_pieces(self.paths, self.base, version=version, checksums=checksums)
        return self._pieces

    def _recipe_adapter(self, method: Method, user_id: str) -> Adapter:
        return adapter_from_recipe(self.recipe(method, user_id), self.pieces)

    @property
    def own(self) -> dict[str, SharerAdapter]:
        """Every target's own adapter, by user id."""
        if self._own is None:
            read_marker(self.paths, "train_own", wanted_by="evaluate")
            self._own = own_adapters(self.paths.own)
        return self._own

    def own_adapter(self, user_id: str) -> Adapter:
        """One target's own adapter."""
        return _factors(self.own[user_id])

    @cached_property
    def warm(self) -> dict[str, SharerAdapter]:
        """Every target's adapter that was trained from its assembly on, by user id."""
        return own_adapters(warm_pool(self.cfg, self.paths))

    def _warm_adapter(self, user_id: str) -> Adapter:
        return _factors(self.warm[user_id])

    def _kind_answers(self, kind: Kind) -> Answers:
        read_marker(self.paths, f"train_{kind}", wanted_by="evaluate")
        model, prompter = open_kind(self.cfg, self.paths, self.base, kind), self.prompter
        limit, found = self.cfg.evaluate.max_queries, []
        for user in self.users:
            model.load(read_state(self.paths, kind, user.id))
            prompts = [prompter.query(user, query).prompt for query in asked(user, limit=limit)]
            found += self._texts(model, prompts)
        pairs = [(user, query) for user in self.users for query in asked(user, limit=limit)]
        return Answers(
            user_ids=tuple(user.id for user, _ in pairs),
            query_ids=tuple(query.id for _, query in pairs),
            predictions=tuple(found),
            golds=tuple(query.gold for _, query in pairs),
        )

    def _texts(self, model: KindModel, prompts: Sequence[tuple[int, ...]]) -> list[str]:
        labels, tokenizer = self.prompter.task.labels, self.base.tokenizer
        if self.cfg.evaluate.decoding == "constrained":
            chosen = model.choose(prompts, [self.prompter.label(label) for label in labels])
            return [labels[i] for i in chosen]
        most, eos = self.cfg.prompt.max_label, int(tokenizer.eos_token_id)
        tokens = model.answer(prompts, max_new=most, eos_id=eos)
        return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def _joint_adapter(self, user_id: str) -> Adapter:
        return self._joint

    @cached_property
    def _joint(self) -> Adapter:
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

    def _raw(self) -> tuple[Base, Prompter]:
        model, tokenizer = load_causal_lm(str(base_folder(self.paths.raw_base)), dtype=self.cfg.base.dtype)
        base = banked(model, tokenizer, mark="", device=self.cfg.base.device, targets=self.cfg.lora.targets)
        return base, Prompter(self.prompter.task, tokenizer, self.cfg.prompt)


def _factors(adapter: SharerAdapter) -> Adapter:
    return {name: (torch.from_numpy(p.a), torch.from_numpy(p.b)) for name, p in adapter.pieces.items()}


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Evaluate in one worker, then summarise here."""
    outputs, choices = run_remote(evaluate_all, cfg, paths, cfg=cfg.ray)
    targets = read_split(paths.population, "targets")
    task = get_task(cfg.population.task)
    results = build_results(
        outputs,
        experiment=experiment_of(cfg, paths),
        titles={m.name: (m.title, m.role) for m in METHODS.values()},
        choices=choices,
        user_items={user.id: len(user.known) for user in targets},
        options=SummaryOptions(resamples=cfg.evaluate.resamples, labels=task.labels),
    )
    write_text(paths.results, to_text(results))
    return {"methods": list(cfg.evaluate.methods), "queries": len(outputs[0].golds)}


def evaluate_all(cfg: ExperimentConfig, paths: Paths) -> tuple[list[MethodOutput], Any]:
    """(outputs of every method in order, which sharers were chosen for whom)."""
    evaluator = Evaluator(cfg, paths)
    methods, outputs = get_methods(cfg.evaluate.methods), []
    for method in methods:
        outputs.append(_output(evaluator, method))
        right = sum(p == g for p, g in zip(outputs[-1].predictions, outputs[-1].golds, strict=True))
        log.info(
            "%s: %d queries answered, %d exactly as the user did", method.title, len(outputs[-1].golds), right
        )
    if cfg.evaluate.save_text:
        _save_text(outputs, paths.predictions)
    population = read_population(paths.population)
    return outputs, choices_of(evaluator, methods, population)


def _output(evaluator: Evaluator, method: Method) -> MethodOutput:
    key = answers_key(evaluator, method)
    kept = kept_answers(evaluator, method, key)
    if kept is None:
        with peak_memory(evaluator.base.model.device) as peak:
            found = evaluator.answers(method)
        kept = Kept(found, peak.bytes)
        keep_answers(evaluator.paths, method, kept, key)
    found = kept.answers
    cost = priced_cost(evaluator, method)
    proxy = evaluator.prompter.task.proxy
    return MethodOutput(
        method=method.name,
        seed=evaluator.cfg.seed,
        user_ids=found.user_ids,
        query_ids=found.query_ids,
        predictions=found.predictions,
        golds=found.golds,
        cost=replace(cost, peak_memory=max(kept.memory, prepared_memory(evaluator, method))),
        note="histories have no output of the task's kind; trained on a stand-in" if proxy else "",
    )


def _save_text(outputs: Sequence[MethodOutput], path: str) -> None:
    """Users' own text, kept only when `evaluate.save_text` asks for it."""
    lines: list[Mapping[str, str]] = [
        {"method": o.method, "user": u, "query": q, "prediction": p, "gold": g}
        for o in outputs
        for u, q, p, g in zip(o.user_ids, o.query_ids, o.predictions, o.golds, strict=True)
    ]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def methods_text() -> str:
    """Every method with its meaning, for `--methods`."""
    return "\n".join(f"  {m.name:24s} {m.title} ({m.role}): {m.doc}" for m in METHODS.values())


STAGE = Stage(
    "evaluate", "evaluation", run, needs=("assemble",), settings=("seed", "prompt", "evaluate", "lora", "own_warm"),
    makes="results", check=check_methods,
)  # fmt: skip

if __name__ == "__main__":
    listing = {"methods": ("list every method with its meaning", methods_text)}
    sys.exit(stage_main(STAGE, description=__doc__, listings=listing))
