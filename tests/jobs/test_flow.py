"""The whole flow on a mini population: what a run leaves, what a second one does, and what changed settings cost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import (
    adapt,
    assemble,
    evaluate,
    index,
    pipeline,
    report,
    select_sharers,
    train_ia3,
    train_joint,
    train_own,
    train_prompt_tuning,
    train_sharers,
)
from perpcs.errors import ConfigError, DataError, StoreError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def rewritten_files(before, after):
    """Files that were written, made or removed."""
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def rewritten(before, after):
    """Top-level names under which anything was written, made or removed."""
    return {name.split("/")[0] for name in rewritten_files(before, after)}


def markers(before, after):
    """Stages that ran again."""
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    return {Path(name).stem for name in changed if name.startswith("stages/")}


def stage(module, *argv):
    command = [sys.executable, "-m", f"jobs.{module}", *map(str, argv)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=dict(os.environ)
    )


def test_every_method_has_a_row_and_the_report_shows_it(finished, mini):
    results = json.loads((finished / "results.json").read_text())
    methods = mini(finished).evaluate.methods
    assert list(dict.fromkeys(row["method"] for row in results["rows"])) == list(methods)
    assert {row["queries"] for row in results["rows"]} == {12}
    html = (finished / "report.html").read_text()
    assert all(row["title"].split("'")[0] in html for row in results["rows"])
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html


def test_adapters_change_answers(finished):
    lines = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    by_method = {}
    for line in lines:
        by_method.setdefault(line["method"], []).append(line["prediction"])
    assert by_method["oppu"] != by_method["adapted"] and by_method["oppu"] != by_method["other_oppu"]


def test_a_finished_run_is_recognised_without_ray_and_without_a_write(finished, mini, contents, monkeypatch):
    def connect(_):
        raise AssertionError("nothing is to do")

    before = contents(finished)
    monkeypatch.setattr(pipeline, "connect", connect)
    pipeline.main(mini(finished))
    assert contents(finished) == before


def test_the_same_seed_gives_the_same_results_in_another_folder(finished, mini, tmp_path, same_results):
    pipeline.main(mini(tmp_path / "again", "ray.address=none"))
    assert same_results(tmp_path / "again") == same_results(finished)
    texts = [(folder / "predictions.jsonl").read_text() for folder in (finished, tmp_path / "again")]
    assert texts[0] == texts[1]


def test_deleted_indexes_are_built_again_and_nothing_else_is_done(copy, mini, contents):
    before = contents(copy)
    shutil.rmtree(copy / "indexes")
    pipeline.main(mini(copy))
    after = contents(copy)
    assert {n.rsplit("/", 1)[-1] for n in before if n.startswith("indexes/")} == {
        n.rsplit("/", 1)[-1] for n in after if n.startswith("indexes/")
    }
    assert markers(before, after) == {"index"}


def test_a_deleted_pool_is_trained_again_with_all_that_was_made_of_it(copy, mini, contents, same_results):
    before, results = contents(copy), same_results(copy)
    shutil.rmtree(copy / "pool")
    pipeline.main(mini(copy))
    assert markers(before, contents(copy)) == {
        "train_sharers", "index", "train_joint", "assemble", "evaluate", "report",
    }  # fmt: skip
    assert same_results(copy) == results


def test_whoever_withdraws_is_left_out_of_all_that_is_made_anew_and_not_trained_again(copy, mini, contents):
    from storage.pool import Pool
    from storage.withdraw import withdraw

    pool = Pool.open(str(copy / "pool"))
    gone = pool.view().ids[2]
    withdraw(pool, gone)
    (copy / "stages" / "train_sharers.json").unlink()
    before = contents(copy)
    pipeline.main(mini(copy))
    assert markers(before, contents(copy)) == {
        "train_sharers", "index", "train_joint", "assemble", "evaluate", "report",
    }  # fmt: skip
    assert len(pool.view().ids) == 3 and gone not in pool.view().ids
    choices = json.loads((copy / "results.json").read_text())["choices"]
    assert gone not in choices["sharers"] and len(choices["sharers"]) == 3


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("pool.train.lr", "0.02", "train_sharers .* pool.train.lr was 0.01, is 0.02; "),
        ("own.steps", "31", "train_own .* own.steps was 30, is 31; "),
        ("seed", "1", "ingest .* seed was 0, is 1; "),
        ("prompt.max_length", "50", "adapt .* prompt.max_length was 48, is 50; "),
    ],
)
def test_settings_that_cost_training_are_refused_on_an_old_folder(copy, mini, contents, key, value, told):
    before = contents(copy)
    with pytest.raises(ConfigError, match=told + "use another folder"):
        pipeline.main(mini(copy, f"{key}={value}"))
    assert contents(copy) == before


def test_other_methods_are_evaluated_without_training(copy, mini, contents):
    before = contents(copy)
    pipeline.main(mini(copy, "evaluate.methods=adapted,oppu,gradient_svd"))
    after = contents(copy)
    assert markers(before, after) == {"assemble", "evaluate", "report"}
    assert not {"base", "base-raw", "population.lance", "pool", "own", "events.jsonl"} & rewritten(
        before, after
    )
    rows = json.loads((copy / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"adapted", "oppu", "gradient_svd"}
    assert "gradient key, rank r" in (copy / "report.html").read_text()


def test_another_row_costs_that_row_alone(copy, mini, contents, same_results):
    """Other rows' recipes and answers stay as they are; so do their values."""
    from storage.recipes import RecipeStore

    methods, before = mini(copy).evaluate.methods, contents(copy)
    rows = same_results(copy)["rows"]
    more = ("gradient_global_fitted", "rag_2", "oppu_ia3", "oppu_prompt")
    pipeline.main(mini(copy, f"evaluate.methods={','.join([*methods, *more])}", "own_kinds.steps=3"))
    written = {n for n in rewritten_files(before, contents(copy)) if n.startswith("answers/")}
    assert written == {f"answers/{name}.json" for name in more}
    stored = RecipeStore(str(copy / "recipes.lance"))
    assert (
        len(stored.all("gradient_global_fitted/concat")) == 3
        and len(list((copy / "own_kinds").rglob("*.*"))) == 6
    )
    assert [row for row in same_results(copy)["rows"] if row["method"] in methods] == rows


@pytest.mark.parametrize(
    ("change", "methods"),
    [
        ("evaluate.resamples=150", set()),
        ("evaluate.save_text=false", set()),
        ("assembly.gradient_temperature=0.02", {"gradient", "gradient_global", "other_assembly"}),
        ("assembly.batch_items=4", {"per_pcs"}),
    ],
)
def test_only_answers_that_a_setting_changes_are_made_anew(copy, mini, contents, change, methods):
    before = contents(copy)
    pipeline.main(mini(copy, change))
    written = {n for n in rewritten_files(before, contents(copy)) if n.startswith("answers/")}
    assert written <= {f"answers/{name}.json" for name in methods}
    assert "stages/evaluate.json" in rewritten_files(before, contents(copy))


def test_the_users_own_answers_are_scored_where_that_is_asked(copy, mini, contents, same_results):
    methods = ("base", "adapted", "oppu", "gradient", "oppu_ia3")
    scored = mini(
        copy, "evaluate.likelihood=true", f"evaluate.methods={','.join(methods)}", "own_kinds.steps=3"
    )
    pipeline.main(scored)
    rows = json.loads((copy / "results.json").read_text())["rows"]
    losses = {row["method"]: row["value"] for row in rows if row["metric"] == "gold_loss"}
    assert set(losses) == set(methods) and len(set(losses.values())) == len(methods)
    assert losses["adapted"] < losses["base"], "adaptation lowers what it was trained on"
    assert "Nats per gold token" in (copy / "report.html").read_text()
    results, before = same_results(copy), contents(copy)
    (copy / "stages" / "evaluate.json").unlink()
    pipeline.main(scored)
    assert same_results(copy) == results
    assert not {n for n in rewritten_files(before, contents(copy)) if n.startswith("answers/")}


def test_scoring_what_was_answered_before_answers_nothing_anew(copy, mini, monkeypatch):
    """On: the losses alone are added. Off: they stay where they are and are not shown."""

    def no_text(*_):
        raise AssertionError("answered again")

    monkeypatch.setattr("jobs.evaluator.answer", no_text)
    pipeline.main(mini(copy, "evaluate.likelihood=true", "ray.address=none"))
    metrics = {row["metric"] for row in json.loads((copy / "results.json").read_text())["rows"]}
    assert metrics == {"accuracy", "macro_f1", "gold_loss"}
    pipeline.main(mini(copy, "ray.address=none"))
    metrics = {row["metric"] for row in json.loads((copy / "results.json").read_text())["rows"]}
    assert metrics == {"accuracy", "macro_f1"}
    monkeypatch.setattr("jobs.evaluator.gold_losses", no_text)
    pipeline.main(mini(copy, "evaluate.likelihood=true", "ray.address=none"))


def test_a_training_that_went_astray_is_named_where_its_loss_is_asked_for(copy, mini):
    cfg = mini(
        copy, "evaluate.likelihood=true", "evaluate.methods=adapted,oppu_ia3", "own_kinds.steps=5",
        "own_kinds.ia3_lr=1e30", "ray.address=none",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"method oppu_ia3: the loss of what user \S+ answered is nan"):
        pipeline.main(cfg)


def test_another_top_k_is_assembled_again_over_the_same_pool(copy, mini, contents):
    from storage.recipes import RecipeStore

    before = contents(copy)
    pipeline.main(mini(copy, "assembly.top_k=2"))
    after = contents(copy)
    assert markers(before, after) == {"assemble", "evaluate", "report"}
    assert not {"base", "pool", "own", "indexes"} & rewritten(before, after)
    recipes = RecipeStore(str(copy / "recipes.lance")).all("gradient/concat")
    assert [recipe.ordinals.shape[1] for recipe in recipes] == [2, 2, 2]


def test_going_back_to_old_settings_gives_the_old_results(copy, mini, same_results):
    results = same_results(copy)
    pipeline.main(mini(copy, "assembly.top_k=1"))
    assert same_results(copy) != results
    pipeline.main(mini(copy))
    assert same_results(copy) == results


def test_settings_of_how_the_work_is_done_are_free(copy, mini, contents):
    before = contents(copy)
    pipeline.main(mini(copy, "pool.train.pack=3", "evaluate.batch=5", "ray.workers=2"))
    assert rewritten(before, contents(copy)) == {"config.yaml"}


def test_stages_are_programs_of_their_own(copy, mini_yaml, same_results):
    results = same_results(copy)
    shutil.rmtree(copy / "stages")
    shutil.rmtree(copy / "population.lance")
    # Ray as a program's own is in the tests of resuming and of object stores.
    place = f"experiment={copy}", "ray.address=none"
    for module in ("ingest", "adapt"):
        done = stage(module, mini_yaml, *place)
        assert done.returncode == 0, done.stderr
    refused = stage("train_sharers", mini_yaml, *place)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert (
        "train_sharers needs the stage select_sharers first; run python -m jobs.select_sharers"
        in refused.stderr
    )
    done = stage("pipeline", mini_yaml, *place)
    assert done.returncode == 0, done.stderr
    assert "population: already done" in done.stderr and "base model: already done" in done.stderr
    assert "OPPU" in done.stdout
    assert same_results(copy) == results


@pytest.mark.parametrize(
    ("module", "before"),
    [
        (adapt, "ingest"),
        (select_sharers, "adapt"),
        (train_sharers, "select_sharers"),
        (train_own, "adapt"),
        (index, "train_sharers"),
        (train_joint, "index"),
        (train_ia3, "adapt"),
        (train_prompt_tuning, "adapt"),
        (assemble, "index"),
        (evaluate, "assemble"),
        (report, "evaluate"),
    ],
)
def test_a_stage_without_its_predecessor_names_it_and_writes_nothing(mini, tmp_path, module, before):
    with pytest.raises(StoreError, match=f"needs the stage {before} first; run python -m jobs.{before} "):
        module.STAGE(mini(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()
