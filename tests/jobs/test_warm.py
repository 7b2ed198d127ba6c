"""Own adapters that start from the assembly: what they start from, what is kept, and what is made anew when."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs import assemble, evaluate, index, train_sharers, train_warm
from jobs.assemble import recipe_key
from jobs.evaluator import Evaluator
from jobs.loading import open_base, open_pieces
from jobs.packs import WarmWorker
from jobs.runtime import in_this_process
from jobs.status import status_of
from perpcs.assembly.merge import adapter_from_recipe
from perpcs.errors import StoreError
from perpcs.evaluation.methods import METHODS
from storage.layout import Paths
from storage.pool import Pool, pool_exists
from storage.recipes import RecipeStore
from storage.withdraw import withdraw

ROOT = Path(__file__).resolve().parents[2]
ROWS = "evaluate.methods=adapted,oppu,gradient_global,oppu_warm"
DRIVER = """
import os, signal, sys
from jobs import assemble, train_warm
from jobs.packs import WarmWorker
from jobs.runtime import in_this_process
from perpcs.config import load_config

packs = []

def train(self, users, data):
    packs.append(users)
    if len(packs) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return trained(self, users, data)

trained, WarmWorker.train = WarmWorker.train, train
cfg = load_config(sys.argv[1], sys.argv[2:])
with in_this_process():
    for module in (assemble, train_warm):
        module.STAGE(cfg)
"""
pytestmark = pytest.mark.slow


def pools(folder):
    """Attempts by user of every pool in own_warm/."""
    found = [str(path) for path in (folder / "own_warm").glob("*")]
    views = {uri.rsplit("/", 1)[1]: Pool.open(uri).view() for uri in found if pool_exists(uri)}
    return {name: dict(zip(view.ids, view.attempts.tolist(), strict=True)) for name, view in views.items()}


def answers(folder):
    return {path.stem: path.stat().st_mtime_ns for path in (folder / "answers").iterdir()}


def row(folder, method):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return next(row for row in rows if row["method"] == method)


def run(cfg):
    """The stages from the pool on, without Ray."""
    with in_this_process():
        for module in (train_sharers, index, assemble, train_warm, evaluate):
            module.STAGE(cfg)


@pytest.fixture
def warm(copy, mini):
    """(folder of a finished run with warm adapters, its config)."""
    cfg = mini(copy, ROWS, "own_warm.steps=4", "own_warm.batch=4", "own_warm.pack=2")
    run(cfg)
    return copy, cfg


def test_the_row_is_trained_from_the_recipes_and_costs_both(warm):
    folder, cfg = warm
    paths, evaluator = Paths.of(cfg.experiment), Evaluator(cfg, Paths.of(cfg.experiment))
    base = open_base(cfg, paths)
    worker = WarmWorker(
        cfg, paths, uri=train_warm.warm_pool(cfg, paths), key=recipe_key(cfg, paths, "gradient_global")
    )
    user = evaluator.users[0].id
    recipe = RecipeStore(paths.recipes).get(user, "gradient_global/svd")
    expected = adapter_from_recipe(recipe, open_pieces(paths, base, version=recipe.pool_version))
    start = worker.starts([user])[user]
    trained = evaluator.own_adapter(user, uses="warm")
    for name, (a, b) in expected.items():
        assert torch.equal(start[name][0], a) and torch.equal(start[name][1], b)
        near, far = (
            trained[name][1] @ trained[name][0] - x for x in (b @ a, torch.zeros(len(b), a.shape[1]))
        )
        assert 0 < float(near.norm()) < float(far.norm()), "trained, and not far from where it started"
    assert evaluator.own(user, uses="warm").steps == 4
    found = status_of(paths)
    assert found.stages["train_warm"] == "done" and "train_ia3" not in found.stages
    assert (found.training["train_warm"].done, found.training["train_warm"].left) == (3, 0)

    own, made, both = (row(folder, m) for m in ("oppu", "gradient_global", "oppu_warm"))
    share = 4 * 4 / (30 * 4)  # item visits over OPPU's
    assert both["trainable_parameters"] == own["trainable_parameters"]
    assert both["bytes_per_user"] == own["bytes_per_user"] and both["pool_bytes"] == made["pool_bytes"] > 0
    assert both["forward_tokens"] == pytest.approx(
        made["forward_tokens"] + share * own["forward_tokens"], abs=2
    )
    assert both["backward_tokens"] == pytest.approx(
        made["backward_tokens"] + share * own["backward_tokens"], abs=2
    )
    assert both["forward_flops"] == pytest.approx(
        made["forward_flops"] + share * own["forward_flops"], rel=1e-3
    )
    assert both["backward_flops"] == pytest.approx(
        made["backward_flops"] + share * own["backward_flops"], rel=1e-3
    )
    assert both["pool_flops"] == made["pool_flops"] and both["seconds"] > made["seconds"]


def test_what_does_not_matter_trains_nothing_and_what_does_replaces_the_adapters(warm, mini):
    folder, cfg = warm
    before, answered = pools(folder), answers(folder)
    settings = ("own_warm.steps=4", "own_warm.batch=4")
    run(mini(folder, ROWS.replace("oppu,", "rag_4,"), *settings, "own_warm.pack=1"))
    assert pools(folder) == before and answers(folder)["oppu_warm"] == answered["oppu_warm"]

    run(mini(folder, ROWS, "own_warm.steps=5", "own_warm.batch=4"))
    now = pools(folder)
    assert len(now) == 1 and not now.keys() & before.keys(), "one pool, another one"
    changed = {name for name, at in answers(folder).items() if answered.get(name) != at}
    assert changed == {"rag_4", "oppu_warm"}
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    spent = [e["tokens"] for e in events if e["stage"] == "warm adapters" and e["kind"] == "pack"]
    marker = json.loads((folder / "stages" / "train_warm.json").read_text())["info"]
    assert marker["tokens"] == spent[-1] < sum(spent), "what the other adapters took is not counted"

    with (
        in_this_process(),
        pytest.raises(StoreError, match=r"start from other recipes .* run python -m jobs.train_warm"),
    ):
        evaluate.STAGE(cfg)


def test_nothing_stays_of_who_withdrew(warm, mini):
    folder, cfg = warm
    before, pool = pools(folder), Pool.open(str(folder / "pool"))
    withdraw(pool, pool.view().ids[0])
    (folder / "stages" / "train_sharers.json").unlink()
    run(cfg)
    assert len(pools(folder)) == 1 and not pools(folder).keys() & before.keys()
    assert len(next(iter(pools(folder).values()))) == 3


def test_without_its_recipes_it_says_what_to_run(copy, mini):
    with (
        in_this_process(),
        pytest.raises(StoreError, match=r"3 targets, .* run python -m jobs.assemble with oppu_warm in"),
    ):
        train_warm.STAGE(mini(copy))
    assert METHODS["oppu_warm"].rule == "gradient_global"


def test_killed_while_it_trains_it_goes_on_and_ends_the_same(copy, mini, mini_yaml, tmp_path, same_results):
    one_by_one = (ROWS, "own_warm.pack=1")
    killed, undisturbed = copy, tmp_path / "undisturbed"
    shutil.copytree(copy, undisturbed, copy_function=shutil.copy2)
    command = [sys.executable, "-c", DRIVER, str(mini_yaml), f"experiment={killed}", *one_by_one]
    assert subprocess.run(command, cwd=ROOT, env=dict(os.environ), timeout=240).returncode == -signal.SIGKILL
    ((name, first),) = pools(killed).items()
    assert len(first) == 1, "killed in the second pack"

    run(mini(killed, *one_by_one))
    assert pools(killed).keys() == {name} and first.items() <= pools(killed)[name].items()
    run(mini(undisturbed, *one_by_one))
    assert same_results(killed) == same_results(undisturbed)
    assert pools(undisturbed).keys() == pools(killed).keys()
