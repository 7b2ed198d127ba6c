"""Evaluates many settings of one experiment for little more than the generation of their different answers.

Computed once: the base, the histories' tokens, the gradient queries and everybody's rank under them. Per setting: which
pieces, with which weights. Answers belong to an adapter's content, so settings that choose the same pieces for a user
are answered once, and all adapters that are new are asked together, side by side in one bank.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from jobs.evaluator import Evaluator
from jobs.experiment import stage_info
from jobs.loading import open_pieces, shared_part
from jobs.readings import recent_load
from jobs.summary import SEARCHED, assembled_cost, cost_of
from jobs.sweep_plan import Trial
from jobs.sweep_train import state_of
from perpcs.assembly.assembler import Assembler, settings_of
from perpcs.assembly.merge import adapter_from_recipe
from perpcs.assembly.pieces import Pieces, RankedPieces
from perpcs.assembly.rules import make_recipe
from perpcs.config import ExperimentConfig
from perpcs.evaluation.comparisons import SummaryOptions
from perpcs.evaluation.methods import recipe_name
from perpcs.evaluation.results import Cost, Experiment, MethodOutput
from perpcs.evaluation.runner import Ask, answer_all, asked
from perpcs.evaluation.summary import build_results
from perpcs.lora.bank import Adapter, AdapterBank
from perpcs.population.prompts import PLAIN, Context, Encoded, Prompter
from perpcs.population.tasks import get_task
from perpcs.records import Query, Recipe, User
from storage.cache import PieceCache
from storage.layout import Paths

PIECE_BYTES = 1 << 30
"""Of pieces that an engine keeps in memory."""
ASSEMBLIES = 64
"""Assembled settings that are kept: those of the last rungs."""
NO_ADAPTER = b""

Place = tuple[bytes, str, Context]
"""(content of the adapter, user, what is shown of their past): what an answer depends on besides the question."""


@dataclass(frozen=True)
class Prepared:
    """A trial whose adapters are known: `contents` by user, in the order of the targets."""

    trial: Trial
    contents: tuple[bytes, ...]
    context: Context
    cost: Cost
    fresh: list[int] = field(default_factory=lambda: [0])
    """How many questions were answered for this trial and not remembered."""


class Engine:
    """One experiment in one process. `slots` adapters are asked together; `cache` answers are remembered."""

    def __init__(self, cfg: ExperimentConfig, *, slots: int, cache: int) -> None:
        self.cfg, self.slots = cfg, slots
        self.paths = Paths.of(cfg.experiment)
        self.evaluator = Evaluator(cfg, self.paths)
        base = self.evaluator.base
        self.prompter = self.evaluator.prompter = RememberingPrompter(
            self.evaluator.prompter.task, base.tokenizer, cfg.prompt
        )
        self.users = self.evaluator.users
        self.memory = AnswerMemory(cache)
        self._facts = functools.cache(lambda method: self.evaluator.facts([method]))
        self._pieces: Pieces | None = None
        self._queries: dict[int, tuple[dict[str, np.ndarray], float]] = {}
        self._assembled: OrderedDict[Any, tuple[list[Recipe], float]] = OrderedDict()

    def rows(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Evaluate trials of this experiment together; rows for `storage.trials`."""
        started, adapters = time.perf_counter(), dict[bytes, Callable[[], Adapter]]()
        prepared = [self._prepare(trial, adapters) for trial in trials]
        answers = self._answer(prepared, adapters)
        rows = [self._row(one, answers) for one in prepared]
        spent = (time.perf_counter() - started) / len(rows)
        return [row | {"spent": round(spent, 5)} for row in rows]

    # What each user gets

    def _prepare(self, trial: Trial, adapters: dict[bytes, Callable[[], Adapter]]) -> Prepared:
        method = trial.method
        context = method.context(retrieve=trial.cfg.evaluate.retrieve)
        whose = [self.evaluator.stand_in[u.id] if method.of_another else u.id for u in self.users]
        if method.uses == "recipe":
            recipes, seconds = self.recipes(trial)
            by_user = dict(zip((u.id for u in self.users), recipes, strict=True))
            for recipe in recipes:
                adapters.setdefault(content(recipe), partial(adapter_from_recipe, recipe, self.pieces))
            contents = tuple(content(by_user[user_id]) for user_id in whose)
            return Prepared(trial, contents, context, self._recipe_cost(trial, recipes, seconds))
        cost = cost_of(self._facts(method), method)
        if method.uses == "none":
            return Prepared(trial, (NO_ADAPTER,) * len(whose), context, cost)
        for user_id in whose:
            adapters.setdefault(_own(user_id), partial(self.evaluator.own_adapter, user_id))
        return Prepared(trial, tuple(map(_own, whose)), context, cost)

    @property
    def pieces(self) -> Pieces:
        """The pool that the experiment's index was made of."""
        if self._pieces is None:
            version = stage_info(self.paths, "index", wanted_by="the sweep")["pool_version"]
            pool = open_pieces(self.paths, self.evaluator.base, version=version)
            pool.view.cache = PieceCache(PIECE_BYTES)
            self._pieces = RankedPieces(pool)
        return self._pieces

    def recipes(self, trial: Trial) -> tuple[list[Recipe], float]:
        """(recipe of every target, seconds per target that assembling took, with the shared queries counted in)."""
        method = trial.method
        key = method.rule, method.merge, repr(settings_of(method.rule, trial.cfg.assembly))
        if key not in self._assembled:
            self._assembled[key] = self._assemble(trial)
            while len(self._assembled) > ASSEMBLIES:
                self._assembled.popitem(last=False)
        self._assembled.move_to_end(key)
        return self._assembled[key]

    def _assemble(self, trial: Trial) -> tuple[list[Recipe], float]:
        method, cfg = trial.method, trial.cfg
        pieces = shared_part(self.pieces, cfg.assembly, seed=cfg.seed)
        assembler = SharingAssembler(
            self.evaluator.base,
            self.prompter,
            pieces,
            config=cfg.assembly,
            encoder=cfg.select.encoder,
            seed=cfg.seed,
        )
        shared = self._share_queries(assembler) if SEARCHED.get(method.rule) == "gradient" else 0.0
        started = time.perf_counter()
        picks = assembler.picks(method.rule, method.merge, self.users)
        seconds = shared + time.perf_counter() - started
        name = recipe_name(method.rule, method.merge)
        recipes = [
            make_recipe(u.id, name, p, self.pieces, merge=method.merge)
            for u, p in zip(self.users, picks, strict=True)
        ]
        return recipes, seconds / len(self.users)

    def _share_queries(self, assembler: SharingAssembler) -> float:
        """Give the assembler the targets' gradient queries; the seconds that they took when they were computed."""
        items = assembler.config.max_items
        if items not in self._queries:
            started = time.perf_counter()
            found = assembler.gradient_queries(self.users)
            self._queries[items] = found, time.perf_counter() - started
        assembler.shared, seconds = self._queries[items]
        return seconds

    def _recipe_cost(self, trial: Trial, recipes: Sequence[Recipe], seconds: float) -> Cost:
        cfg, rule = trial.cfg, trial.method.rule
        read = [recent_load(self.prompter, user, cfg.assembly.max_items) for user in self.users]
        part = shared_part(self.pieces, cfg.assembly, seed=cfg.seed)
        sizes = [(recipe.nbytes, recipe.codes.size) for recipe in recipes]
        return assembled_cost(cfg, part, rule, recipes=sizes, read=read, seconds=seconds)

    # What they answer

    def _answer(
        self, prepared: Sequence[Prepared], adapters: Mapping[bytes, Callable[[], Adapter]]
    ) -> dict[Place, list[str]]:
        """Answers by place: the longest list that any of these trials asks for."""
        wanted: dict[Place, tuple[User, int, Prepared]] = {}
        for one in prepared:
            for user, adapter in zip(self.users, one.contents, strict=True):
                place, count = (adapter, user.id, one.context), len(self._asked(user, one))
                if place not in wanted or wanted[place][1] < count:
                    wanted[place] = user, count, one
        answers = {place: list(self.memory.get(place)) for place in wanted}
        todo = {place: ask for place, ask in wanted.items() if len(answers[place]) < ask[1]}
        loaded = {place[0]: None for place in todo}
        plain = [place for place in todo if place[0] == NO_ADAPTER]
        self._ask(plain, todo, answers, {})
        names = [name for name in loaded if name != NO_ADAPTER]
        for start in range(0, len(names), self.slots):
            chunk = {name: adapters[name]() for name in names[start : start + self.slots]}
            self._ask([place for place in todo if place[0] in chunk], todo, answers, chunk)
        for place in todo:
            self.memory.put(place, answers[place])
        return answers

    def _ask(
        self,
        places: Sequence[Place],
        todo: Mapping[Place, tuple[User, int, Prepared]],
        answers: dict[Place, list[str]],
        adapters: Mapping[bytes, Adapter],
    ) -> None:
        """Generate what is missing at these places, all adapters side by side; none given: the base alone."""
        slot = {name: i for i, name in enumerate(adapters)}
        asks, owners = [], []
        for place in places:
            user, count, one = todo[place]
            for query in user.queries[len(answers[place]) : count]:
                asks.append(Ask(slot.get(place[0], 0), user, query, place[2]))
                owners.append(place)
            one.fresh[0] += count - len(answers[place])
        if not asks:
            return
        scale = self.cfg.lora.alpha / self.cfg.lora.rank
        model, bank = self.evaluator.base.model, None
        if adapters:
            held = list(adapters.values())
            bank = AdapterBank.holding(model.projections, held, scale=scale, device=model.device)
        texts = answer_all(self.evaluator.base, self.prompter, asks, bank=bank, batch=self.cfg.evaluate.batch)
        for place, text in zip(owners, texts, strict=True):
            answers[place].append(text)

    def _asked(self, user: User, one: Prepared) -> tuple[Query, ...]:
        return asked(user, limit=one.trial.cfg.evaluate.max_queries)

    # What is kept of it

    def _row(self, one: Prepared, answers: Mapping[Place, list[str]]) -> dict[str, Any]:
        output = self._output(one, answers)
        trial, cfg, task = one.trial, one.trial.cfg, get_task(self.cfg.population.task)
        results = build_results(
            [output],
            experiment=Experiment(
                cfg.experiment, cfg.population.task, cfg.seed, 0, 0, len(self.users), 0, "", "", 0, ""
            ),
            titles={},
            options=SummaryOptions(resamples=cfg.evaluate.resamples, labels=task.labels),
        )
        head = results.rows[0]
        return {
            "id": trial.id,
            "seed": cfg.seed,
            "method": trial.method.name,
            "values": json.dumps(trial.values),
            "metric": head.metric,
            "value": head.value,
            "low": head.low,
            "high": head.high,
            "metrics": json.dumps({row.metric: [row.value, row.low, row.high] for row in results.rows}),
            "users": head.users,
            "queries": head.queries,
            **asdict(one.cost),
            "answered": one.fresh[0],
            "user_sums": json.dumps({s.metric: [s.user_ids, s.queries, s.sums] for s in results.user_sums}),
            "predictions": list(output.predictions) if cfg.evaluate.save_text else None,
            "experiment": self.paths.root.rsplit("/", 1)[-1],
            "state": state_of(trial),
            "at": int(time.time() * 1000),
        }

    def _output(self, one: Prepared, answers: Mapping[Place, list[str]]) -> MethodOutput:
        told = [
            (user.id, query.id, text, query.gold)
            for user, adapter in zip(self.users, one.contents, strict=True)
            for query, text in zip(
                self._asked(user, one), answers[adapter, user.id, one.context], strict=False
            )
        ]
        users, queries, texts, golds = tuple(zip(*told, strict=True)) if told else ((), (), (), ())
        name, seed = one.trial.method.name, one.trial.cfg.seed
        return MethodOutput(name, seed, users, queries, texts, golds, one.cost)


class SharingAssembler(Assembler):
    """Takes all targets' gradient queries from whoever computed them."""

    shared: dict[str, np.ndarray] | None = None

    def gradient_queries(self, users: Sequence[User]) -> dict[str, np.ndarray]:
        """See `Assembler`; `users` are all targets."""
        return super().gradient_queries(users) if self.shared is None else self.shared


class AnswerMemory:
    """Answers by place, the least recently used forgotten first; holds users' text in memory only."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self._held: OrderedDict[Place, tuple[str, ...]] = OrderedDict()

    def get(self, place: Place) -> tuple[str, ...]:
        """The answers to a user's first questions; () when there are none."""
        if place in self._held:
            self._held.move_to_end(place)
        return self._held.get(place, ())

    def put(self, place: Place, texts: Sequence[str]) -> None:
        """Remember answers."""
        self.count += len(texts) - len(self._held.pop(place, ()))
        self._held[place] = tuple(texts)
        while self.count > self.most and self._held:
            self.count -= len(self._held.popitem(last=False)[1])


class RememberingPrompter(Prompter):
    """Encodes each history and question once."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._histories: dict[Any, list[Encoded]] = {}
        self._encoded: dict[Any, Encoded] = {}

    def history(self, user: User, *, context: Context = PLAIN, max_items: int = 0) -> list[Encoded]:
        """See `Prompter`."""
        key = user.id, context, max_items
        if key not in self._histories:
            self._histories[key] = super().history(user, context=context, max_items=max_items)
        return self._histories[key]

    def query(self, user: User, query: Query, *, context: Context = PLAIN) -> Encoded:
        """See `Prompter`."""
        key = user.id, query.id, context
        if key not in self._encoded:
            self._encoded[key] = super().query(user, query, context=context)
        return self._encoded[key]


def content(recipe: Recipe) -> bytes:
    """The same for two recipes of one pool exactly when they stand for the same adapter, bit for bit."""
    state = hashlib.blake2b(f"{recipe.merge} {recipe.weight_scale!r}".encode(), digest_size=16)
    for ordinals, codes in zip(recipe.ordinals, recipe.codes, strict=True):
        used = codes != 0
        state.update(used.sum().tobytes() + ordinals[used].astype("<u4").tobytes() + codes[used].tobytes())
    return state.digest()


def _own(user_id: str) -> bytes:
    return b"own " + user_id.encode()
