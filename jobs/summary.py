"""What goes beside the scores into results.json: costs, which sharers were chosen, where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from jobs.experiment import Info, stage_info
from jobs.loading import shared_part
from perpcs.assembly.assembler import FITTED
from perpcs.assembly.pieces import PartialPieces, Pieces
from perpcs.assembly.select import sharer_weights
from perpcs.config import ExperimentConfig, as_flat_dict, digest
from perpcs.evaluation.cost import adapter_parameters, history_bytes, pool_bytes, tokens_of
from perpcs.evaluation.methods import Method, recipe_name
from perpcs.evaluation.results import Choices, Cost, Experiment
from perpcs.population.prompts import Prompter
from perpcs.population.synthetic import similarity_matrix
from perpcs.records import Population, Recipe, SharerAdapter, User
from storage.layout import Paths

if TYPE_CHECKING:
    from jobs.evaluate import Evaluator

SEARCHED = {
    "gate": "gate",
    "gate_batches": "gate",
    "gradient": "gradient",
    "gradient_global": "gradient",
    "gradient_fitted": "gradient",
    "gradient_global_fitted": "gradient",
    "reranked": "gradient",
    "reranked_fitted": "gradient",
    "retrieval": "history",
}
"""The key that a rule searches."""
SHOWN = ("seed", "population.source", "population.task", "base.model", "lora.rank", "lora.targets", "select.strategy",
         "select.count", "pool.train.steps", "pool.train.lr", "own.steps", "own.lr", "assembly.top_k",
         "assembly.temperature", "assembly.gradient_temperature")  # fmt: skip


def cost_of(evaluator: Evaluator, method: Method) -> Cost:
    """Cost of one method per target user; a control costs what the method it imitates costs."""
    cost = Cost(0, 0.0, 0, 0.0)
    if method.uses == "own":
        info = stage_info(evaluator.paths, "train_own", wanted_by="evaluate")
        cost = _trained_cost(evaluator, evaluator.own, info, batch=evaluator.cfg.own.batch)
    if method.kind:
        cost = _kind_cost(evaluator, method.kind)
    if method.uses == "joint":
        # Trained once, kept once: what it costs each user goes to zero with their number.
        parameters = adapter_parameters(evaluator.base.model.projections, evaluator.cfg.lora.rank)
        cost = Cost(0, 0.0, 4 * parameters, 0.0)
    if method.uses == "recipe":
        cost = _recipe_cost(evaluator, method)
    return replace(cost, bytes_per_user=cost.bytes_per_user + _shown_bytes(evaluator, method))


def priced_cost(evaluator: Evaluator, method: Method) -> Cost:
    """`cost_of` with its operations. One that is trained from its assembly on costs what both cost; what it answers with
    is the adapter alone."""
    prices = evaluator.prices
    if method.uses != "warm":
        return prices.priced(cost_of(evaluator, method), method, adapted=method.uses == "own")
    info = stage_info(evaluator.paths, "train_warm", wanted_by="evaluate")
    made = prices.priced(_recipe_cost(evaluator, method), method, adapted=False)
    trained = prices.priced(
        _trained_cost(evaluator, evaluator.warm, info, batch=evaluator.cfg.own_warm.batch),
        method,
        adapted=True,
    )
    assert made.forward_flops is not None and trained.forward_flops is not None
    assert made.backward_flops is not None and trained.backward_flops is not None
    return replace(
        trained,
        pool_bytes=made.pool_bytes,
        pool_flops=made.pool_flops,
        seconds_per_user=made.seconds_per_user + trained.seconds_per_user,
        forward_tokens=made.forward_tokens + trained.forward_tokens,
        backward_tokens=made.backward_tokens + trained.backward_tokens,
        forward_flops=made.forward_flops + trained.forward_flops,
        backward_flops=made.backward_flops + trained.backward_flops,
    )


def _kind_cost(evaluator: Evaluator, kind: str) -> Cost:
    info = stage_info(evaluator.paths, f"train_{kind}", wanted_by="evaluate")
    visits = evaluator.cfg.own_kinds.steps * evaluator.cfg.own_kinds.batch
    virtual = evaluator.cfg.own_kinds.virtual_tokens if kind == "prompt_tuning" else 0
    tokens = round(mean(visits * (_tokens_per_item(evaluator, u) + virtual) for u in evaluator.users))
    return Cost(info["parameters"], 4.0 * info["parameters"], 0, info["seconds_per_user"], tokens, tokens)


def _shown_bytes(evaluator: Evaluator, method: Method) -> float:
    """What a row keeps of each user in order to show it in prompts."""
    if method.shows == "history":
        return mean(history_bytes(u) for u in evaluator.users)
    return _profile_bytes(evaluator) if method.shows == "profile" else 0.0


def prepared_memory(evaluator: Evaluator, method: Method) -> int:
    """Most bytes in use while what the method needs of a target was made, as its stage measured; 0 for nothing."""
    if method.uses == "own":
        return int(stage_info(evaluator.paths, "train_own", wanted_by="evaluate").get("peak_memory", 0))
    if method.uses == "warm":
        info = stage_info(evaluator.paths, "train_warm", wanted_by="evaluate")
        return max(int(info["peak_memory"]), _recipe_memory(evaluator, method))
    return _recipe_memory(evaluator, method) if method.uses == "recipe" else 0


def _recipe_memory(evaluator: Evaluator, method: Method) -> int:
    found = stage_info(evaluator.paths, "assemble", wanted_by="evaluate").get("peak_memory", {})
    return int(found.get(recipe_name(method.rule, method.merge), 0))


def _trained_cost(
    evaluator: Evaluator, adapters: Mapping[str, SharerAdapter], info: Info, *, batch: int
) -> Cost:
    """Of adapters trained for every target; `info` is what their stage reports."""
    parameters = adapter_parameters(evaluator.base.model.projections, evaluator.cfg.lora.rank)
    # Counted from what is stored: the event log misses a pack whose commit was the last thing before a kill.
    tokens = round(
        mean(_tokens_per_item(evaluator, u) * adapters[u.id].steps * batch for u in evaluator.users)
    )
    return Cost(
        trainable_parameters=parameters,
        bytes_per_user=4.0 * parameters,
        pool_bytes=0,
        seconds_per_user=info["pack_seconds"] / info["users"],
        forward_tokens=tokens,
        backward_tokens=tokens,
    )


def _tokens_per_item(evaluator: Evaluator, user: User) -> float:
    examples = evaluator.prompter.history(user)
    return tokens_of(examples) / len(examples)


def _recipe_cost(evaluator: Evaluator, method: Method) -> Cost:
    cfg = evaluator.cfg
    info = stage_info(evaluator.paths, "assemble", wanted_by="evaluate")
    return assembled_cost(
        cfg,
        shared_part(evaluator.pieces, cfg.assembly, seed=cfg.seed),
        method.rule,
        recipes=[evaluator.recipe(method, u.id) for u in evaluator.users],
        tokens=history_tokens(evaluator.prompter, evaluator.users, cfg.assembly.max_items)
        if method.rule in SEARCHED
        else 0,
        items=mean(len(u.known) for u in evaluator.users),
        seconds=info["seconds_per_user"][recipe_name(method.rule, method.merge)],
    )


def history_tokens(prompter: Prompter, users: Sequence[User], max_items: int) -> int:
    """Tokens of a user's history as assembly reads it, mean over users."""
    return round(mean(tokens_of(prompter.history(u, max_items=max_items)) for u in users))


def assembled_cost(
    cfg: ExperimentConfig,
    pieces: Pieces,
    rule: str,
    *,
    recipes: Sequence[Recipe],
    tokens: int,
    seconds: float,
    items: float = 0.0,
) -> Cost:
    """Cost of a rule over a pool, or over the part of it that is shared; tokens, seconds and history items per user.
    `items` is needed for rules that visit items again."""
    key = SEARCHED.get(rule, "")
    whole = pool_bytes(
        pieces.spec, len(pieces.ids), key=key, number_bytes=2 if cfg.pool.dtype == "float16" else 4
    )
    part = float(pieces.shared.mean()) if isinstance(pieces, PartialPieces) else 1.0
    fit = cfg.assembly.fit
    again = round(fit.steps * fit.batch * tokens / items) if rule in FITTED and items else 0
    # Once for the history key, once under the base, once under every candidate.
    judged = tokens * (2 + min(cfg.assembly.shortlist, len(pieces.ids))) if rule.startswith("reranked") else 0
    return Cost(
        trainable_parameters=round(mean(r.codes.size for r in recipes)) if rule in FITTED else 0,
        bytes_per_user=mean(r.nbytes for r in recipes),
        pool_bytes=round(whole * part),
        seconds_per_user=seconds,
        forward_tokens=tokens + judged + again,
        backward_tokens=(tokens if key == "gradient" else 0) + again,
    )


def _profile_bytes(evaluator: Evaluator) -> float:
    from perpcs.population.profile import label_profile

    top = evaluator.cfg.prompt.profile_labels
    return mean(len(label_profile(evaluator.prompter.task, u.known, top).encode()) for u in evaluator.users)


def choices_of(evaluator: Evaluator, methods: Sequence[Method], population: Population) -> Choices | None:
    """Which sharers every assembled method chose, with the known similarity where the population is synthetic."""
    recipes = [m for m in methods if m.uses == "recipe" and not m.of_another]
    assembled = list({(m.rule, m.merge): m for m in reversed(recipes)}.values())[::-1]
    if not assembled:
        return None
    ids = evaluator.pieces.ids
    weights = {
        m.name: _rows(
            np.stack([sharer_weights(evaluator.recipe(m, u.id), len(ids)) for u in evaluator.users])
        )
        for m in assembled
    }
    sharers = {u.id: u for u in population.candidates}
    # An erased sharer has an empty id, and nobody knows what they liked.
    known = all(u.preferences for u in evaluator.users) and all(i in sharers for i in ids)
    truth = _rows(similarity_matrix(evaluator.users, [sharers[i] for i in ids])) if known else None
    return Choices(targets=tuple(u.id for u in evaluator.users), sharers=ids, weights=weights, truth=truth)


def _rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(x), 5) for x in row) for row in matrix)


def experiment_of(cfg: ExperimentConfig, paths: Paths) -> Experiment:
    """Where the numbers come from."""
    sizes = stage_info(paths, "ingest", wanted_by="evaluate")
    index = stage_info(paths, "assemble", wanted_by="evaluate")
    flat = as_flat_dict(cfg)
    same = {
        k: str(v) for k, v in flat.items() if k not in ("seed", "experiment") and not k.startswith("ray.")
    }
    return Experiment(
        name=cfg.experiment,
        task=cfg.population.task,
        seed=cfg.seed,
        base_users=sizes["base"],
        candidates=sizes["candidates"],
        targets=sizes["targets"],
        sharers=stage_info(paths, "select_sharers", wanted_by="evaluate")["sharers"],
        base_model=cfg.base.model,
        fingerprint=stage_info(paths, "adapt", wanted_by="evaluate")["fingerprint"],
        pool_version=index["pool_version"],
        config_digest=digest(same),
        command=f"python -m jobs.pipeline {paths.root}/config.yaml",
        settings={key: str(flat[key]) for key in SHOWN},
    )
