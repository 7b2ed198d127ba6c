"""Stage 8: answer the targets' queries with every method and write results.json."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.answers import Kept, answers_key, keep_answers, kept_answers
from jobs.cli import stage_main
from jobs.evaluator import Evaluator, Opened
from jobs.experiment import Info, Stage
from jobs.memory import peak_memory
from jobs.preflight import check_methods
from jobs.prices import Prices
from jobs.readings import Facts
from jobs.spread import slices, spread
from jobs.summary import choices_of, experiment_of, prepared_memory, priced_cost
from perpcs.config import ExperimentConfig
from perpcs.evaluation.comparisons import SummaryOptions
from perpcs.evaluation.methods import METHODS, Method, get_methods
from perpcs.evaluation.results import MethodOutput, to_text
from perpcs.evaluation.runner import answers_of, asked
from perpcs.evaluation.summary import build_results
from perpcs.population.tasks import get_task
from perpcs.records import User
from storage.files import write_text
from storage.layout import Paths
from storage.population import read_split, read_users

log = logging.getLogger(__name__)

TARGETS, QUERIES = 64, 1024
"""At most about so many in a slice: all their adapters are in memory at once."""

Slice = tuple[int, tuple[str, ...]]
"""(its number, target ids)."""


@dataclass(frozen=True)
class Part:
    """What comes of one slice."""

    answers: Mapping[str, Kept]
    """By method."""
    facts: Facts
    """With the readings of the slice's targets."""


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Answer in as many tasks as there are workers, slice by slice, then summarise here."""
    targets, methods = read_split(paths.population, "targets"), get_methods(cfg.evaluate.methods)
    parts = spread(evaluate_slices, cfg, paths, parts=slices_of(cfg, targets), cfg=cfg.ray)
    facts = replace(parts[0].facts, readings=[reading for part in parts for reading in part.facts.readings])
    prices = Prices(facts)
    outputs = [_output(cfg, targets, method, parts=parts, prices=prices) for method in methods]
    if cfg.evaluate.save_text:
        _save_text(outputs, paths.predictions)
    results = build_results(
        outputs,
        experiment=experiment_of(cfg, paths),
        titles={m.name: (m.title, m.role) for m in METHODS.values()},
        choices=choices_of(facts, methods, targets),
        user_items={user.id: len(user.known) for user in targets},
        options=SummaryOptions(resamples=cfg.evaluate.resamples, labels=get_task(cfg.population.task).labels),
    )
    write_text(paths.results, to_text(results))
    return {"methods": list(cfg.evaluate.methods), "queries": len(outputs[0].golds)}


def slices_of(cfg: ExperimentConfig, targets: Sequence[User]) -> list[Slice]:
    """The targets in slices, the same for any number of workers."""
    limit = cfg.evaluate.max_queries
    weights = [max(1 / TARGETS, len(asked(user, limit=limit)) / QUERIES) for user in targets]
    return list(enumerate(map(tuple, slices([user.id for user in targets], weights, most=1))))


def evaluate_slices(cfg: ExperimentConfig, paths: Paths, parts: Sequence[Slice]) -> list[Part]:
    """Every method's answers to each slice, kept as soon as they are there, and what costs follow from."""
    opened, methods = Opened(cfg, paths), get_methods(cfg.evaluate.methods)
    slices = [
        Evaluator(cfg, paths, users=read_users(paths.population, user_ids), opened=opened)
        for _, user_ids in parts
    ]
    answers: list[dict[str, Kept]] = [{} for _ in parts]
    for group in by_model(methods):
        for (number, _), evaluator, found in zip(parts, slices, answers, strict=True):
            started = time.monotonic()
            found |= {method.name: _answers(evaluator, method, number) for method in group}
            evaluator.release()
            took = time.monotonic() - started
            log.info("%s: answered for %d targets in %.1f s", _named(group), len(evaluator.users), took)
        opened.release()
    return [Part(found, evaluator.facts(methods)) for evaluator, found in zip(slices, answers, strict=True)]


def by_model(methods: Sequence[Method]) -> list[list[Method]]:
    """Methods that need the same model, so that at most one is in memory beside the adapted base."""
    groups: dict[tuple[bool, str], list[Method]] = {}
    for method in methods:
        groups.setdefault((method.uses == "raw", method.kind), []).append(method)
    return list(groups.values())


def _named(methods: Sequence[Method]) -> str:
    return methods[0].title if len(methods) == 1 else f"{len(methods)} methods"


def _answers(evaluator: Evaluator, method: Method, number: int) -> Kept:
    """A method's answers to a slice, with the golds' losses where they are wanted: those that were kept, or new ones, which
    are kept."""
    key = answers_key(evaluator, method)
    kept = kept_answers(evaluator, method, number, key)
    if kept is None:
        with peak_memory(evaluator.base.model.device) as peak:
            found = evaluator.answers(method)
        kept = Kept(found.predictions, peak.bytes)
        keep_answers(evaluator.paths, method, number, kept=kept, key=key)
    if evaluator.cfg.evaluate.likelihood and not kept.losses:
        kept = replace(kept, losses=tuple(evaluator.losses(method)))
        keep_answers(evaluator.paths, method, number, kept=kept, key=key)
    return kept


def _output(
    cfg: ExperimentConfig, targets: Sequence[User], method: Method, *, parts: Sequence[Part], prices: Prices
) -> MethodOutput:
    kept = [part.answers[method.name] for part in parts]
    texts = [text for one in kept for text in one.predictions]
    answers = answers_of(targets, texts, max_queries=cfg.evaluate.max_queries)
    cost = priced_cost(prices, method)
    memory = max(prepared_memory(prices.facts.paths, method), *(one.memory for one in kept))
    right = sum(p == g for p, g in zip(answers.predictions, answers.golds, strict=True))
    log.info("%s: %d queries answered, %d exactly as the user did", method.title, len(texts), right)
    proxy = get_task(cfg.population.task).proxy
    return MethodOutput(
        method=method.name,
        seed=cfg.seed,
        user_ids=answers.user_ids,
        query_ids=answers.query_ids,
        predictions=answers.predictions,
        golds=answers.golds,
        cost=replace(cost, peak_memory=memory),
        note="histories have no output of the task's kind; trained on a stand-in" if proxy else "",
        losses=tuple(loss for one in kept for loss in one.losses) if cfg.evaluate.likelihood else (),
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
