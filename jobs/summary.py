"""What goes beside the scores into results.json: costs, which sharers were chosen, where the numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import numpy as np

from jobs.experiment import Info, stage_info
from jobs.loading import shared_part
from jobs.prices import Prices
from jobs.readings import Facts
from perpcs.assembly.assembler import FITTED
from perpcs.assembly.fitted import fit_steps
from perpcs.assembly.pieces import PartialPieces, Pieces
from perpcs.assembly.select import sharer_weights
from perpcs.config import ExperimentConfig, as_flat_dict, digest
from perpcs.config.schema import AssemblyConfig
from perpcs.evaluation.cost import Load, pool_bytes
from perpcs.evaluation.methods import Method, Uses, recipe_name
from perpcs.evaluation.results import Choices, Cost, Experiment
from perpcs.population.synthetic import similarity_matrix
from perpcs.records import User
from storage.layout import Paths
from storage.population import read_ids, read_users
from storage.recipes import RecipeStore

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
SHOWN_CHOICES = 250_000
"""Numbers in a matrix of who chose whom; with 2,500 sharers these are 100 targets."""
SHOWN = ("seed", "population.source", "population.task", "base.model", "lora.rank", "lora.targets", "select.strategy",
         "select.count", "pool.train.steps", "pool.train.lr", "own.steps", "own.lr", "assembly.top_k",
         "assembly.temperature", "assembly.gradient_temperature")  # fmt: skip


def cost_of(facts: Facts, method: Method) -> Cost:
    """Cost of one method per target user; a control costs what the method it imitates costs."""
    cost = Cost(0, 0.0, 0, 0.0)
    if method.uses == "own":
        info = stage_info(facts.paths, "train_own", wanted_by="evaluate")
        cost = _trained_cost(facts, "own", info, batch=facts.cfg.own.batch)
    if method.kind:
        cost = _kind_cost(facts, method.kind)
    if method.uses == "joint":
        # Trained once, kept once: what it costs each user goes to zero with their number.
        cost = Cost(0, 0.0, 4 * facts.adapter, 0.0)
    if method.uses == "recipe":
        cost = _recipe_cost(facts, method)
    return replace(cost, bytes_per_user=cost.bytes_per_user + _shown_bytes(facts, method))


def priced_cost(prices: Prices, method: Method) -> Cost:
    """`cost_of` with its operations. One that is trained from its assembly on costs what both cost; what it answers with
    is the adapter alone."""
    facts = prices.facts
    if method.uses != "warm":
        return prices.priced(cost_of(facts, method), method, adapted=method.uses == "own")
    info = stage_info(facts.paths, "train_warm", wanted_by="evaluate")
    made = prices.priced(_recipe_cost(facts, method), method, adapted=False)
    trained = _trained_cost(facts, "warm", info, batch=facts.cfg.own_warm.batch)
    trained = prices.priced(trained, method, adapted=True)
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


def _kind_cost(facts: Facts, kind: str) -> Cost:
    info, own = stage_info(facts.paths, f"train_{kind}", wanted_by="evaluate"), facts.cfg.own_kinds
    visits = own.steps * own.batch
    virtual = own.virtual_tokens if kind == "prompt_tuning" else 0
    tokens = round(mean(visits * (reading.per_item + virtual) for reading in facts.readings))
    return Cost(info["parameters"], 4.0 * info["parameters"], 0, info["seconds_per_user"], tokens, tokens)


def _shown_bytes(facts: Facts, method: Method) -> float:
    """What a row keeps of each user in order to show it in prompts."""
    if method.shows == "history":
        return mean(reading.history_bytes for reading in facts.readings)
    return mean(reading.profile_bytes for reading in facts.readings) if method.shows == "profile" else 0.0


def prepared_memory(paths: Paths, method: Method) -> int:
    """Most bytes in use while what the method needs of a target was made, as its stage measured; 0 for nothing."""
    if method.uses == "own":
        return int(stage_info(paths, "train_own", wanted_by="evaluate").get("peak_memory", 0))
    if method.uses == "warm":
        info = stage_info(paths, "train_warm", wanted_by="evaluate")
        return max(int(info["peak_memory"]), _recipe_memory(paths, method))
    return _recipe_memory(paths, method) if method.uses == "recipe" else 0


def _recipe_memory(paths: Paths, method: Method) -> int:
    found = stage_info(paths, "assemble", wanted_by="evaluate").get("peak_memory", {})
    return int(found.get(recipe_name(method.rule, method.merge), 0))


def _trained_cost(facts: Facts, uses: Uses, info: Info, *, batch: int) -> Cost:
    """Of adapters trained for every target; `info` is what their stage reports."""
    # Counted from what is stored: the event log misses a pack whose commit was the last thing before a kill.
    tokens = round(mean(reading.per_item * reading.steps[uses] * batch for reading in facts.readings))
    return Cost(
        trainable_parameters=facts.adapter,
        bytes_per_user=4.0 * facts.adapter,
        pool_bytes=0,
        seconds_per_user=info["pack_seconds"] / info["users"],
        forward_tokens=tokens,
        backward_tokens=tokens,
    )


def _recipe_cost(facts: Facts, method: Method) -> Cost:
    cfg, readings, name = facts.cfg, facts.readings, recipe_name(method.rule, method.merge)
    info = stage_info(facts.paths, "assemble", wanted_by="evaluate")
    return assembled_cost(
        cfg,
        shared_part(facts.pieces, cfg.assembly, seed=cfg.seed),
        method.rule,
        recipes=[reading.recipes[name] for reading in readings],
        read=[reading.recent for reading in readings],
        seconds=info["seconds_per_user"][name],
    )


def assembled_cost(
    cfg: ExperimentConfig,
    pieces: Pieces,
    rule: str,
    *,
    recipes: Sequence[tuple[int, int]],
    read: Sequence[Load],
    seconds: float,
) -> Cost:
    """Cost of a rule over a pool, or over the part of it that is shared; seconds per user. recipes: bytes and number of
    codes of each. read: what assembly reads of each user's history."""
    key = SEARCHED.get(rule, "")
    whole = pool_bytes(
        pieces.spec, len(pieces.ids), key=key, number_bytes=2 if cfg.pool.dtype == "float16" else 4
    )
    part = float(pieces.shared.mean()) if isinstance(pieces, PartialPieces) else 1.0
    tokens = round(mean(load.tokens for load in read)) if rule in SEARCHED else 0
    again = round(mean(fitting_tokens(cfg.assembly, load) for load in read)) if rule in FITTED else 0
    # Once for the history key, once under the base, once under every candidate.
    judged = tokens * (2 + min(cfg.assembly.shortlist, len(pieces.ids))) if rule.startswith("reranked") else 0
    return Cost(
        trainable_parameters=round(mean(codes for _, codes in recipes)) if rule in FITTED else 0,
        bytes_per_user=mean(size for size, _ in recipes),
        pool_bytes=round(whole * part),
        seconds_per_user=seconds,
        forward_tokens=tokens + judged + again,
        backward_tokens=(tokens if key == "gradient" else 0) + again,
    )


def fitting_tokens(assembly: AssemblyConfig, read: Load) -> float:
    """Tokens that fitting the weights visits, forward and backward alike."""
    fit = assembly.fit
    steps = fit_steps(fit, read.examples, epochs=assembly.fit_epochs)
    return steps * fit.batch * read.tokens / read.examples


def choices_of(facts: Facts, methods: Sequence[Method], targets: Sequence[User]) -> Choices | None:
    """Which sharers every assembled method chose, with the known similarity where the population is synthetic.

    Of many targets some, evenly taken, so that no matrix has more than SHOWN_CHOICES numbers.
    """
    recipes = [m for m in methods if m.uses == "recipe" and not m.of_another]
    assembled = list({(m.rule, m.merge): m for m in reversed(recipes)}.values())[::-1]
    if not assembled:
        return None
    ids, store = facts.pieces.ids, RecipeStore(facts.paths.recipes)
    users = thinned(targets, max(1, SHOWN_CHOICES // len(ids)))
    names = [user.id for user in users]
    weights = {}
    for method in assembled:
        found = store.of(names, recipe_name(method.rule, method.merge))
        weights[method.name] = _rows(np.stack([sharer_weights(found[name], len(ids)) for name in names]))
    truth = _known_similarity(facts.paths, users, ids)
    return Choices(targets=tuple(names), sharers=ids, weights=weights, truth=truth)


def thinned(users: Sequence[User], most: int) -> Sequence[User]:
    """At most so many, evenly taken."""
    if len(users) <= most:
        return users
    return [users[int(i)] for i in np.linspace(0, len(users) - 1, most)]


def _known_similarity(
    paths: Paths, users: Sequence[User], ids: Sequence[str]
) -> tuple[tuple[float, ...], ...] | None:
    # An erased sharer has an empty id, and nobody knows what they liked.
    if not all(user.preferences for user in users) or not set(ids) <= set(
        read_ids(paths.population, "candidates")
    ):
        return None
    return _rows(similarity_matrix(users, read_users(paths.population, ids)))


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
