"""The rows of every comparison (METHOD section 5): what each shows the model and which adapter it uses."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from perpcs.errors import ConfigError
from perpcs.evaluation.results import Role
from perpcs.population.prompts import Context
from perpcs.seeds import rng

Uses = Literal["raw", "none", "own", "warm", "kind", "joint", "recipe"]
Shows = Literal["plain", "history", "profile"]


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    title: str
    role: Role
    uses: Uses
    """raw: the base before task adaptation; none: the adapted base alone; own: a LoRA trained for the user; warm: the
    same, trained from the user's assembly by the rule `rule` on; kind: other parameters trained for the user, of the kind
    `kind`; joint: the one adapter trained on all sharers' data; recipe: an adapter made from the pool by the rule `rule`."""
    doc: str
    shows: Shows = "plain"
    rule: str = ""
    merge: str = "concat"
    of_another: bool = False
    """Uses what was made for another target user."""
    kind: Literal["", "prompt_tuning", "ia3"] = ""
    retrieve: int = 0
    """History items in the prompt of a row that shows history; 0: as many as `evaluate.retrieve`."""

    def context(self, *, retrieve: int) -> Context:
        """What this row's prompts show of the user's past. retrieve: `evaluate.retrieve`."""
        items = self.retrieve or retrieve
        return Context(retrieve=items if self.shows == "history" else 0, profile=self.shows == "profile")


_ROWS = (
    Method("base", "base model", "method", "raw", "the base before task adaptation"),
    Method("adapted", "task-adapted base", "method", "none", "the base adapted on other users' data"),
    Method("rag", "RAG", "method", "none", "adapted base, BM25-retrieved history in the prompt", shows="history"),
    *(
        Method(
            f"rag_{k}", f"RAG, {k} item{'s' * (k > 1)}", "method", "none",
            f"as rag with {k} history item{'s' * (k > 1)}, as far as prompt.max_length has room", shows="history",
            retrieve=k,
        )
        for k in (1, 2, 4)
    ),
    Method("pag", "PAG", "method", "none", "adapted base, a profile line in the prompt", shows="profile"),
    Method("oppu", "OPPU (own LoRA)", "method", "own", "a LoRA trained on the target's own history"),
    Method("oppu_rag", "OPPU + RAG", "method", "own", "own LoRA and retrieved history", shows="history"),
    Method("oppu_pag", "OPPU + PAG", "method", "own", "own LoRA and a profile line", shows="profile"),
    Method(
        "oppu_warm", "OPPU from the assembly", "method", "warm",
        "a LoRA that starts from the target's assembly (whole sharers, cut to rank r) and is trained a few steps",
        rule="gradient_global", merge="svd",
    ),
    Method(
        "oppu_prompt", "OPPU, prompt tuning", "method", "kind",
        "virtual tokens trained for each user by the PEFT library, one user after the other", kind="prompt_tuning",
    ),
    Method(
        "oppu_ia3", "OPPU, (IA)³", "method", "kind",
        "(IA)³ vectors trained for each user by the PEFT library, one user after the other", kind="ia3",
    ),
    Method(
        "peft_retrieval", "PEFT retrieval", "method", "recipe",
        "the whole LoRA of the sharer whose history embedding is nearest", rule="retrieval",
    ),
    Method(
        "per_pcs", "Per-Pcs (paper)", "method", "recipe",
        "gate keys, auto-regressive, a selection per batch of history, factors averaged",
        rule="gate_batches", merge="average",
    ),
    Method(
        "per_pcs_once", "Per-Pcs, one selection", "method", "recipe",
        "as Per-Pcs, with one selection from the whole history", rule="gate", merge="average",
    ),
    Method(
        "per_pcs_exact", "Per-Pcs, exact merge", "method", "recipe",
        "as Per-Pcs with one selection, and the exact weighted sum of the pieces", rule="gate",
    ),
    Method(
        "per_pcs_svd", "Per-Pcs, rank r", "method", "recipe",
        "as Per-Pcs with one selection, and the exact sum cut to the pool's rank by SVD", rule="gate", merge="svd",
    ),
    Method(
        "per_pcs_rag", "Per-Pcs + RAG", "method", "recipe", "as per_pcs_once, with retrieved history in the prompt",
        rule="gate", merge="average", shows="history",
    ),
    Method(
        "per_pcs_pag", "Per-Pcs + PAG", "method", "recipe", "as per_pcs_once, with a profile line in the prompt",
        rule="gate", merge="average", shows="profile",
    ),
    Method(
        "gradient", "gradient key, per projection", "ours", "recipe",
        "gradient keys, top-k at every projection, exact weighted sum", rule="gradient",
    ),
    Method(
        "gradient_svd", "gradient key, rank r", "ours", "recipe",
        "as gradient, cut to the pool's rank by SVD", rule="gradient", merge="svd",
    ),
    Method(
        "gradient_average", "gradient key, averaged", "ours", "recipe",
        "as gradient, with the paper's average merge", rule="gradient", merge="average",
    ),
    Method(
        "gradient_global", "gradient key, whole sharers", "ours", "recipe",
        "gradient keys summed over projections, the same top-k sharers everywhere, exact weighted sum",
        rule="gradient_global",
    ),
    Method(
        "gradient_global_svd", "whole sharers, rank r", "ours", "recipe",
        "as gradient_global, cut to the pool's rank by SVD", rule="gradient_global", merge="svd",
    ),
    Method(
        "gradient_global_average", "whole sharers, averaged", "ours", "recipe",
        "as gradient_global, with the paper's average merge", rule="gradient_global", merge="average",
    ),
    Method(
        "gradient_fitted", "gradient key, fitted weights", "ours", "recipe",
        "as gradient, with the pieces' weights fitted to the history in a few steps", rule="gradient_fitted",
    ),
    Method(
        "gradient_global_fitted", "whole sharers, fitted weights", "ours", "recipe",
        "as gradient_global, with the weights fitted per projection in a few steps",
        rule="gradient_global_fitted",
    ),
    Method(
        "reranked", "re-ranked by likelihood", "ours", "recipe",
        "a shortlist of whole sharers by gradient and history key, weighed by the history's likelihood under each and "
        "under no adapter; top-k, exact weighted sum", rule="reranked",
    ),
    Method(
        "reranked_fitted", "re-ranked, fitted weights", "ours", "recipe",
        "the whole shortlist of reranked, with the weights fitted per projection in a few steps",
        rule="reranked_fitted",
    ),
    Method(
        "reranked_fitted_svd", "re-ranked, fitted, rank r", "ours", "recipe",
        "as reranked_fitted, cut to the pool's rank by SVD", rule="reranked_fitted", merge="svd",
    ),
    Method(
        "reranked_rag", "re-ranked + RAG", "ours", "recipe", "as reranked, with retrieved history in the prompt",
        rule="reranked", shows="history",
    ),
    Method(
        "reranked_pag", "re-ranked + PAG", "ours", "recipe", "as reranked, with a profile line in the prompt",
        rule="reranked", shows="profile",
    ),
    Method(
        "other_oppu", "another user's LoRA", "control", "own", "the own LoRA of another target", of_another=True
    ),
    Method(
        "other_assembly", "another user's assembly", "control", "recipe",
        "another target's gradient-key assembly (whole sharers)", rule="gradient_global", of_another=True,
    ),
    Method(
        "joint", "one LoRA for all", "control", "joint",
        "one LoRA trained on all sharers' histories, with the steps and items that the sharers had in all",
    ),
    Method(
        "random_pieces", "random pieces", "control", "recipe",
        "random pieces at every projection, equal weights, exact sum", rule="random",
    ),
    Method(
        "uniform", "uniform mix of all pieces", "control", "recipe",
        "every piece with weight 1/n, exact sum", rule="uniform",
    ),
)  # fmt: skip

METHODS: Mapping[str, Method] = MappingProxyType({m.name: m for m in _ROWS})


def get_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, in this order. Raises ConfigError with a suggestion for an unknown or repeated one."""
    for i, name in enumerate(names):
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, 1)
            hint = f"did you mean {near[0]}?" if near else f"use some of {', '.join(METHODS)}"
            raise ConfigError(f"evaluate.methods: {name!r} is no method; {hint}")
        if name in names[:i]:
            raise ConfigError(f"evaluate.methods: {name!r} is named twice; name it once")
    return [METHODS[name] for name in names]


def needed_rules(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """The (rule, merge) recipes these methods use, each once."""
    return list(dict.fromkeys((m.rule, m.merge) for m in methods if m.rule))


def recipe_name(rule: str, merge: str) -> str:
    """Name under which a rule's recipes are stored."""
    return f"{rule}/{merge}"


def others(user_ids: Sequence[str], *, seed: int) -> dict[str, str]:
    """For the controls: each user's stand-in, another user; a seeded random cycle, so everybody stands in once.

    A single user has nobody else and stands in for itself; the report warns of so few users anyway.
    """
    order = [str(u) for u in rng(seed, "others").permutation(sorted(user_ids))]
    return {u: order[(i + 1) % len(order)] for i, u in enumerate(order)}
