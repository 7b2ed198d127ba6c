"""Recipes without the pieces of those who withdrew, where no history is at hand to assemble from anew.

A mended recipe is not what assembly would choose now, and says so: `extra["mended"]`. P projections, k pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from perpcs.records import Recipe, quantise_weights
from storage.ledger import members_at
from storage.pool import Pool
from storage.withdraw import stale_recipes

MENDED = "mended"
"""Key of `Recipe.extra`; the value is the pool version at which those who had withdrawn were taken out."""


def renormalised(recipe: Recipe, gone: np.ndarray) -> Recipe | None:
    """The recipe with weight only for pieces of those who stay, each projection's sum of weights unchanged.

    gone: [n] bool over the sharers of the recipe's pool version. A projection that loses all of its pieces stays
    without an adapter; None where every projection does.
    """
    weights = recipe.weights.astype(np.float64)
    kept = np.where(gone[recipe.ordinals.astype(np.int64)], 0.0, weights)
    before, after = weights.sum(1, keepdims=True), kept.sum(1, keepdims=True)
    if not kept.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(kept != 0, kept * (before / after), 0.0)
    codes, scale = quantise_weights(scaled)
    return replace(recipe, codes=codes, weight_scale=scale)


def mend(pool: Pool, recipes: Iterable[Recipe]) -> tuple[list[Recipe], list[Recipe]]:
    """(mended recipes, ones of which nothing is left) for those that use pieces of anybody who has withdrawn."""
    stale = stale_recipes(pool, recipes)
    mended, empty = [], []
    for recipe in stale:
        members = members_at(pool.log.entries, recipe.pool_version)
        stay = pool.log.refresh().attempts
        made = renormalised(recipe, np.array([member.attempt not in stay for member in members], bool))
        if made is None:
            empty.append(recipe)
        else:
            mended.append(replace(made, extra={**recipe.extra, MENDED: str(pool.log.version)}))
    return mended, empty
