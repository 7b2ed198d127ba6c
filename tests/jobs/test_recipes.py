"""Recipes over a pool in Lance: the adapter in use comes back bit for bit, whatever happens to the pool meanwhile."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import rebuild
from jobs.evaluator import Evaluator
from jobs.experiment import stage_info
from jobs.loading import open_assembler, open_base, open_pieces
from perpcs.assembly.assembler import Assembler
from perpcs.assembly.autoregressive import Rule, mix
from perpcs.assembly.merge import adapter_from_recipe
from perpcs.assembly.pieces import MemoryPieces
from perpcs.errors import StoreError
from perpcs.evaluation.methods import METHODS
from storage import upkeep
from storage.layout import Paths
from storage.pool import Pool
from storage.population import read_split
from storage.recipes import RecipeStore
from storage.withdraw import stale_recipes, withdraw

pytestmark = pytest.mark.slow
STORED = [
    ("gate_batches", "average"),
    ("gate", "average"),
    ("gradient", "concat"),
    ("gradient_global", "concat"),
]


@pytest.fixture
def world(copy, mini, local_ray):
    """(assembler over a copy of the finished run, its paths, its targets)."""
    cfg = mini(copy)
    paths = Paths.of(cfg.experiment)
    base = open_base(cfg, paths)
    version = stage_info(paths, "assemble", wanted_by="a test")["pool_version"]
    return open_assembler(cfg, paths, base, version=version), paths, read_split(paths.population, "targets")


def rebuilt(paths, base, user_id, name):
    recipe = RecipeStore(paths.recipes).get(user_id, name)
    return adapter_from_recipe(recipe, open_pieces(paths, base, version=recipe.pool_version))


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert all(torch.equal(x, y) for x, y in zip(left[name], right[name], strict=True)), name


@pytest.mark.parametrize(("rule", "merge"), STORED[1:3])
def test_the_adapter_that_assembly_used_comes_back_from_the_stored_recipe(world, rule, merge):
    assembler, paths, users = world
    picks = assembler.picks(rule, merge, users)
    for user, (ordinals, codes, _) in zip(users, picks, strict=True):
        how = Rule(3, 1.0, merge)
        used = {
            p.name: tuple(f[0] for f in mix(assembler.pieces, p.name, ordinals[None, j], codes[None, j], how))
            for j, p in enumerate(assembler.pieces.spec.projections)
        }
        assert_same_bits(rebuilt(paths, assembler.base, user.id, f"{rule}/{merge}"), used)


def test_checksums_are_compared_where_the_setting_asks(copy, mini, local_ray):
    cfg = mini(copy, "pool.checksums=true")
    paths = Paths.of(cfg.experiment)
    assembler = open_assembler(cfg, paths, open_base(cfg, paths))
    name = assembler.pieces.spec.projections[0].name
    stored = assembler.pieces.view.fetch(name, np.arange(1))[0].tobytes()
    damaged = 0
    for path in Path(paths.pool).glob("pieces_*.lance/data/*"):
        data = bytearray(path.read_bytes())
        if (place := data.find(stored)) >= 0:
            data[place] ^= 1
            path.write_bytes(data)
            damaged += 1
    assert damaged, "the factors of the first sharer's first piece"
    with pytest.raises(StoreError, match="a piece is damaged, its checksum differs"):
        assembler.pieces.fetch({name: np.arange(4)})


def test_a_pool_that_grows_is_compacted_and_loses_a_sharer_gives_old_recipes_the_same_bits(world):
    assembler, paths, users = world
    before = {
        (u.id, rule): rebuilt(paths, assembler.base, u.id, f"{rule}/{merge}")
        for u in users
        for rule, merge in STORED
    }
    pool = Pool.open(paths.pool)
    first = pool.view().ids[0]
    pool.commit([replace(pool.view().adapter(first), user_id="a newcomer, first by name")])
    withdraw(pool, first)
    upkeep.compact(pool)
    for (user_id, rule), adapter in before.items():
        assert_same_bits(rebuilt(paths, assembler.base, user_id, f"{rule}/{dict(STORED)[rule]}"), adapter)


@pytest.mark.parametrize(("rule", "merge"), [*STORED, ("retrieval", "concat"), ("random", "concat")])
def test_memory_and_lance_choose_alike(world, rule, merge):
    assembler, _, users = world
    view = assembler.pieces.view
    memory = MemoryPieces(view.spec, [view.adapter(i) for i in view.ids], version=view.version)
    other = Assembler(assembler.base, assembler.prompter, memory, config=assembler.config)
    for stored, here in zip(
        assembler.picks(rule, merge, users), other.picks(rule, merge, users), strict=True
    ):
        np.testing.assert_array_equal(stored[0], here[0])
        assert np.abs(stored[1].astype(int) - here[1]).max() <= 1  # FAISS and numpy add up in another order


def test_fitting_after_re_ranking_has_the_whole_shortlist_whatever_top_k(world):
    assembler, _, users = world
    narrow, wide = (
        Assembler(
            assembler.base, assembler.prompter, assembler.pieces,
            config=replace(assembler.config, shortlist=3, top_k=k),
        )
        for k in (1, 4)
    )  # fmt: skip
    one, other = (some.picks("reranked_fitted", "concat", users) for some in (narrow, wide))
    for (ordinals, codes, scale), (again, codes_again, scale_again) in zip(one, other, strict=True):
        assert ordinals.shape[1] == 3 and (codes != 0).sum(axis=1).min() > 1
        np.testing.assert_array_equal(ordinals, again)
        np.testing.assert_array_equal(codes, codes_again)
        assert scale == scale_again
    assert [o.shape[1] for o, _, _ in narrow.picks("reranked", "concat", users)] == [1] * len(users)


@pytest.mark.parametrize(
    ("rule", "merge", "factor"),
    [("reranked", "concat", 0.5), ("reranked_fitted", "svd", 0.5), ("reranked", "average", 0.5**0.5)],
)
def test_what_one_item_chose_is_added_in_part(world, rule, merge, factor):
    assembler, _, users = world
    unsure, sure = (
        Assembler(
            assembler.base, assembler.prompter, assembler.pieces,
            config=replace(assembler.config, max_items=1, sure_items=items),
        ).picks(rule, merge, users)
        for items in (4, 0)
    )  # fmt: skip
    for part, whole in zip(unsure, sure, strict=True):
        np.testing.assert_array_equal(part[0], whole[0])
        np.testing.assert_array_equal(part[1], whole[1])
        assert part[2] == pytest.approx(whole[2] * factor)


def test_a_rebuild_makes_anew_exactly_the_recipes_that_used_who_withdrew(world, mini, copy, caplog):
    assembler, paths, users = world
    store, pool = RecipeStore(paths.recipes), Pool.open(paths.pool)
    before = {(r.user_id, r.method): r for r in store.all()}
    uses = Counter(
        i for r in before.values() if r.method == "gradient/concat" for i in r.ordinals[r.codes != 0].tolist()
    )
    gone = pool.view().ids[min(uses, key=uses.get)]
    withdraw(pool, gone)
    stale = {(r.user_id, r.method) for r in stale_recipes(pool, before.values())}
    foreign = replace(next(r for key, r in before.items() if key in stale), user_id="of another place")
    store.put([foreign])
    with caplog.at_level("INFO", "jobs"):
        rebuild.main(mini(copy))
    assert "no history of 1 users here, e.g. of another place" in caplog.text
    assert [r.user_id for r in stale_recipes(pool, store.all())] == [foreign.user_id]
    now = Assembler(
        assembler.base, assembler.prompter, open_pieces(paths, assembler.base), config=assembler.config
    )
    after = {(r.user_id, r.method): r for r in store.all()}
    assert 0 < len(stale) < len(before)
    for (user_id, method), old in before.items():
        new = after[user_id, method]
        if (user_id, method) in stale:
            (user,) = (u for u in users if u.id == user_id)
            (want,) = now.picks(*method.split("/"), [user])
            assert np.array_equal(new.ordinals[new.codes != 0], want[0][want[1] != 0])
            assert new.pool_version == now.pieces.version
        else:
            assert new.ordinals.tobytes() == old.ordinals.tobytes() and new.pool_version == old.pool_version
    user_id = next(user_id for user_id, name in sorted(stale) if name == "gradient/concat")
    with pytest.raises(StoreError, match=r"rebuilt after a withdrawal.* run python -m jobs.pipeline"):
        Evaluator(mini(copy), paths).recipe(METHODS["gradient"], user_id)
    with caplog.at_level("INFO", "jobs"):
        rebuild.main(mini(copy))
    assert "nothing to do" in caplog.text


def test_whoever_withdrew_is_in_no_new_assembly(world):
    assembler, paths, users = world
    pool = Pool.open(paths.pool)
    gone = pool.view().ids[1]
    withdraw(pool, gone)
    pieces = open_pieces(paths, assembler.base)
    now = Assembler(assembler.base, assembler.prompter, pieces, config=assembler.config)
    for rule, merge in [*STORED, ("retrieval", "concat"), ("random", "concat"), ("uniform", "concat")]:
        for ordinals, codes, _ in now.picks(rule, merge, users):
            assert gone not in {now.pieces.ids[o] for o in ordinals[codes != 0]}, rule
