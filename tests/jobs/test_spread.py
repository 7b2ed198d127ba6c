"""Work over users in slices: which slices, and that the number of workers changes nothing."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from jobs.spread import shares, slices, spread
from perpcs.config.schema import RayConfig
from perpcs.errors import DataError


def test_slices_keep_order_and_everybody_and_are_nearly_equal():
    weights = [5, 1, 1, 1, 9, 1, 1, 1, 5, 5]
    found = slices(range(10), weights, most=10)
    assert [n for part in found for n in part] == list(range(10)) and len(found) == 3
    assert max(sum(weights[n] for n in part) for part in found) <= 10 + 9
    assert slices("abc", [1, 1, 1], most=100) == ["abc"]
    assert slices("abc", [1, 1, 1], most=0.001) == ["a", "b", "c"]
    assert slices("abc", [100, 0, 0], most=1) == ["a", "b", "c"]
    assert slices([], [], most=5) == []


def test_shares_are_neighbours():
    assert shares("abcde", 2) == ["ab", "cde"]
    assert shares("ab", 4) == ["a", "b"]
    assert shares("", 4) == [""]


def squares(base, folder, together, parts):
    """Waits for as many processes as are meant to work at the same time: each may be done before the next begins."""
    Path(folder, str(os.getpid())).touch()
    until = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < together and time.monotonic() < until:
        time.sleep(0.01)
    return [(base, [n * n for n in part], os.getpid()) for part in parts]


def refuse(parts):
    raise DataError(f"no {parts[0]}")


def test_the_same_comes_out_of_any_number_of_tasks(local_ray, tmp_path):
    parts = [[1, 2], [3], [4, 5]]
    (tmp_path / "one").mkdir()
    (tmp_path / "three").mkdir()
    one = spread(squares, "x", str(tmp_path / "one"), 1, parts=parts, cfg=RayConfig(workers=1))
    three = spread(squares, "x", str(tmp_path / "three"), 2, parts=parts, cfg=RayConfig(workers=3))
    assert (
        [found[:2] for found in one]
        == [found[:2] for found in three]
        == [("x", [1, 4]), ("x", [9]), ("x", [16, 25])]
    )
    assert len({pid for _, _, pid in one}) == 1 and len({pid for _, _, pid in three}) > 1
    with pytest.raises(DataError, match="no "):
        spread(refuse, parts=[[1], [2]], cfg=RayConfig(workers=2))


@pytest.mark.slow
def test_stages_give_the_same_whatever_the_slices(copy, mini):
    """Without Ray: what a stage's task does with one slice and with several."""
    from jobs import assemble, evaluate, select_sharers
    from storage.layout import Paths
    from storage.population import read_ids
    from storage.recipes import RecipeStore

    cfg, paths = mini(copy), Paths.of(str(copy))
    targets, candidates = (list(read_ids(paths.population, split)) for split in ("targets", "candidates"))
    before = RecipeStore(paths.recipes).all()
    version = before[0].pool_version
    assemble.assemble_slices(cfg, paths, version, [targets[:1], targets[1:]])
    for old, new in zip(before, RecipeStore(paths.recipes).all(), strict=True):
        assert (old.user_id, old.method) == (new.user_id, new.method)
        assert np.array_equal(old.ordinals, new.ordinals)
        assert np.abs(old.codes.astype(int) - new.codes).max() <= 1

    shutil.rmtree(copy / "answers")
    whole = evaluate.evaluate_slices(cfg, paths, [(0, tuple(targets))])[0]
    kept = {path.name: path.read_bytes() for path in (copy / "answers").iterdir()}
    parts = evaluate.evaluate_slices(cfg, paths, [(0, tuple(targets[:1])), (1, tuple(targets[1:]))])
    for method, found in whole.answers.items():
        texts = [text for part in parts for text in part.answers[method].predictions]
        assert texts == list(found.predictions), method
    assert [r for part in parts for r in part.facts.readings] == list(whole.facts.readings)
    names = {path.name for path in (copy / "answers").iterdir()}
    assert names == {*kept, *(name.replace(".json", ".1.json") for name in kept)}

    together, apart = (
        np.concatenate(select_sharers.embed_slices(cfg, paths, some))
        for some in ([candidates], [candidates[:1], candidates[1:]])
    )
    assert np.allclose(together, apart, atol=1e-5)


@pytest.mark.slow
def test_a_killed_evaluation_answers_only_what_is_missing(copy, mini, contents):
    """Slice by slice: what was answered before the kill is there, the files of the others are not."""
    from jobs import evaluate
    from storage.layout import Paths
    from storage.population import read_ids

    cfg, paths = mini(copy, "evaluate.methods=adapted,oppu"), Paths.of(str(copy))
    targets = read_ids(paths.population, "targets")
    parts = [(number, (target,)) for number, target in enumerate(targets)]
    before = evaluate.evaluate_slices(cfg, paths, parts)
    (copy / "answers" / "oppu.2.json").unlink()
    stats = contents(copy)
    again = evaluate.evaluate_slices(cfg, paths, parts)
    changed = {name for name, stat in contents(copy).items() if stats.get(name) != stat}
    assert changed == {"answers/oppu.2.json"}
    assert [dict(p.answers)["oppu"].predictions for p in again] == [
        dict(p.answers)["oppu"].predictions for p in before
    ]
