"""Assembling from some of a pool's pieces: as if the others were not there."""

import numpy as np
import pytest

from perpcs.assembly.autoregressive import Rule
from perpcs.assembly.merge import adapter_from_recipe
from perpcs.assembly.pieces import PartialPieces, RankedPieces
from perpcs.assembly.rules import (
    gate_picks,
    gradient_picks,
    make_recipe,
    random_picks,
    retrieval_picks,
    uniform_picks,
)
from perpcs.errors import StoreError

RULE = Rule(top_k=3, temperature=0.5, merge="concat")


@pytest.fixture
def every(banked, targets, pieces):
    """every(pool): rule -> picks of all targets."""
    keys = pieces.history_keys()[:3] + 0.01

    def every(pool):
        ids = [u.user_id for u in targets]
        return {
            "gate": gate_picks(banked, targets, pool, RULE, batch_items=0, items_per_pass=64),
            "gate_batches": gate_picks(banked, targets, pool, RULE, batch_items=3, items_per_pass=64),
            "gradient": gradient_picks(banked, targets, pool, RULE),
            "gradient_global": gradient_picks(banked, targets, pool, RULE, whole_sharers=True),
            "retrieval": retrieval_picks(keys, pool),
            "random": random_picks(ids, pool, top_k=3, seed=0),
            "uniform": [uniform_picks(pool)] * len(ids),
        }

    return every


def rows(pieces, *ordinals):
    """[n, P]: these sharers with all their pieces."""
    mask = np.zeros((len(pieces.ids), len(pieces.spec.projections)), bool)
    mask[list(ordinals)] = True
    return mask


def test_everything_shared_is_the_whole_pool(pieces, every):
    whole, part = every(pieces), every(PartialPieces(pieces, rows(pieces, *range(6))))
    for rule, picks in whole.items():
        for one, other in zip(picks, part[rule], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)), rule


def test_a_part_of_the_sharers_is_a_pool_of_only_them(pieces, pool_of, sharers, every):
    kept = [0, 2, 3, 5]
    small = every(pool_of([s for s in sharers if pieces.ids.index(s.user_id) in kept]))
    part = every(PartialPieces(pieces, rows(pieces, *kept)))
    del small["random"], part["random"]  # draws among other numbers
    for rule, picks in small.items():
        for one, other in zip(picks, part[rule], strict=True):
            assert np.array_equal(np.take(kept, one[0]) * (one[1] != 0), other[0] * (other[1] != 0)), rule
            assert np.array_equal(one[1], other[1]) and one[2] == other[2], rule


def test_pieces_that_are_not_shared_weigh_nothing_and_the_others_share_the_weight(pieces, every):
    shared = np.random.default_rng(1).random((6, len(pieces.spec.projections))) < 0.4
    shared[:, 1] = False  # a projection that nobody shares
    shared[0, 0] = True
    for rule, found in every(PartialPieces(pieces, shared)).items():
        for ordinals, codes, scale in found:
            used = codes != 0
            assert shared.T[np.nonzero(used)[0], ordinals[used]].all(), rule
            total = codes.astype(float).sum(1) * scale / 127
            if rule not in ("retrieval", "gradient_global"):
                assert np.allclose(total, shared.any(0), atol=0.02), rule
            assert total[1] == 0 and ((np.abs(total - 1) < 0.02) | (total == 0)).all(), rule
            recipe = make_recipe("u", rule, (ordinals, codes, scale), pieces, merge="concat")
            adapter = adapter_from_recipe(recipe, pieces)
            assert set(adapter) == {p.name for p, t in zip(pieces.spec.projections, total, strict=True) if t}


def test_nothing_shared_is_refused(pieces, every):
    with pytest.raises(StoreError, match="no sharer to assemble from"):
        every(PartialPieces(pieces, rows(pieces)))


def test_a_ranking_read_off_is_what_a_search_finds(pieces, every):
    shared = np.random.default_rng(2).random((6, len(pieces.spec.projections))) < 0.6
    for part in (pieces, PartialPieces(pieces, shared)):
        whole = part if part is pieces else part.whole
        held = RankedPieces(whole)
        again = held if part is pieces else PartialPieces(held, shared)
        for rule, picks in every(part).items():
            for one, other in zip(picks, every(again)[rule], strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)), rule
