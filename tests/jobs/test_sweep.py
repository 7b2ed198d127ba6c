"""A sweep over a finished mini experiment: the same answers as the pipeline, each trial once, whatever happens between."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

import serve.config
from jobs import pipeline, sweep, sweep_report, sweep_tune
from jobs.runtime import in_this_process
from jobs.sweep_engine import AnswerMemory, Engine, content
from jobs.sweep_plan import STAGES, plan
from jobs.sweep_train import adopt_sharers, make_ready
from perpcs.config import load_config
from perpcs.errors import ConfigError, StoreError
from perpcs.evaluation.methods import METHODS
from perpcs.sweep.config import load_sweep
from storage.layout import Paths
from storage.pool import Pool, pool_exists
from storage.schema import HEADER
from storage.sharers import sharers_uri
from storage.tables import open_table
from storage.trials import TrialTable

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

SPACE = """
sweep:
  reuse: [{donor}]
  space:
    method: [per_pcs_once, gradient]
    assembly.top_k: [1, 2]
    assembly.sharing_ratio: [0.5, 1.0]
"""


@pytest.fixture(scope="module")
def sweep_yaml(mini_yaml, finished, tmp_path_factory):
    """A sweep's file over the finished run, whose population, base and pool it takes over."""
    path = tmp_path_factory.mktemp("sweep") / "sweep.yaml"
    path.write_text(f"defaults: {mini_yaml}\n" + SPACE.format(donor=finished))
    return path


@pytest.fixture(scope="module")
def swept(sweep_yaml, local_ray, tmp_path_factory):
    """The folder of a finished sweep."""
    folder = tmp_path_factory.mktemp("swept") / "run"
    sweep.main(load_sweep(sweep_yaml, [f"experiment={folder}"]))
    return folder


def rows(folder):
    return {row["id"]: row for row in TrialTable(str(folder / "trials.lance")).rows()}


def test_every_row_is_the_pipelines_own(swept, copy, mini):
    for k, ratio in ((1, 0.5), (2, 1.0)):
        values = {"assembly.top_k": k, "assembly.sharing_ratio": ratio}
        pipeline.main(mini(copy, *(f"{key}={value}" for key, value in values.items())))
        results = json.loads((copy / "results.json").read_text())
        answers = [json.loads(line) for line in (copy / "predictions.jsonl").read_text().splitlines()]
        for method in ("per_pcs_once", "gradient"):
            (ours,) = [
                r for r in rows(swept).values() if json.loads(r["values"]) == {"method": method, **values}
            ]
            assert ours["predictions"] == [a["prediction"] for a in answers if a["method"] == method]
            theirs = next(r for r in results["rows"] if r["method"] == method)
            same = [
                "value",
                "low",
                "high",
                "bytes_per_user",
                "pool_bytes",
                "forward_tokens",
                "backward_tokens",
            ]
            assert [ours[key] for key in same] == [theirs[key] for key in same]


def test_nothing_was_trained_and_what_was_left_is_complete(swept, finished):
    (experiment,) = (swept / "experiments").iterdir()
    pools = [Pool.open(str(folder / "pool")).view() for folder in (finished, experiment)]
    assert (pools[0].attempts == pools[1].attempts).all()
    assert not (experiment / "events.jsonl").exists()
    assert len(rows(swept)) == 8 and not list((swept / "inbox").glob("*")) and not (swept / "tune").exists()
    assert "Recommended" in (swept / "report.html").read_text()
    cfg = load_config(swept / "recommended.yaml")
    assert set(cfg.evaluate.methods) & {"per_pcs_once", "gradient"}


def test_the_recommended_setting_is_trained_and_ready_to_be_served(swept):
    cfg = load_config(swept / "recommended.yaml")
    (experiment,) = (swept / "experiments").iterdir()
    assert cfg.experiment == str(experiment)
    assert all(stage.finished(cfg) for stage in STAGES["recipe"]), "jobs.pipeline has nothing to train again"
    best = (swept / "recommended.yaml").read_text().splitlines()[1].split()[1]
    assert best in cfg.evaluate.methods
    service = serve.config.load(str(swept / "serve.yaml"))
    assert service.experiment == cfg.experiment and service.assembly.top_k == cfg.assembly.top_k
    assert (service.assembly.rule, service.assembly.merge) == (METHODS[best].rule, METHODS[best].merge)


def test_the_services_rules_are_those_of_the_service():
    assert set(sweep_report.SERVED) == set(get_args(serve.config.RuleName))


def test_again_does_nothing_and_more_values_only_what_is_new(swept, sweep_yaml, monkeypatch):
    before = rows(swept)
    with monkeypatch.context() as patched:
        patched.setattr(sweep_tune, "run_units", lambda *a, **k: pytest.fail("nothing is to do"))
        sweep.main(load_sweep(sweep_yaml, [f"experiment={swept}"]))
    sweep.main(load_sweep(sweep_yaml, [f"experiment={swept}", "sweep.space.assembly.top_k=[1, 2, 3]"]))
    after = rows(swept)
    assert len(after) == 12 and all(after[id] == row for id, row in before.items())
    table = TrialTable(str(swept / "trials.lance"))
    assert len(table.rows(["seed"])) == 12 and table.add([dict(row) for row in before.values()]) == 0


def test_a_changed_base_is_refused_with_the_difference(swept, sweep_yaml, contents):
    before = contents(swept)
    with pytest.raises(ConfigError, match=r"assembly\.max_items was 0, is 5; use another folder"):
        sweep.main(load_sweep(sweep_yaml, [f"experiment={swept}", "assembly.max_items=5"]))
    assert contents(swept) == before


def test_a_dry_run_writes_nothing(sweep_yaml, tmp_path, caplog):
    with caplog.at_level("INFO", logger="jobs.sweep"):
        sweep.main(load_sweep(sweep_yaml, [f"experiment={tmp_path}/dry", "sweep.seeds=[0, 1]"]), dry_run=True)
    assert "16 different trials, 0 finished before" in caplog.text
    assert "to train: population 1×" in caplog.text and "taken over from" in caplog.text
    assert not (tmp_path / "dry").exists()


def test_killed_between_two_trials_it_goes_on(sweep_yaml, swept, tmp_path):
    command = [sys.executable, "-m", "jobs.sweep", str(sweep_yaml), f"experiment={tmp_path}/run"]
    env = dict(os.environ, PYTHONPATH=f"{ROOT / 'platform'}:{ROOT}")
    run = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env
    )
    seen = []
    for line in run.stderr:
        seen.append(line)
        if "trials finished" in line:
            break
    os.killpg(run.pid, signal.SIGKILL)
    run.stderr.close()
    run.wait(timeout=60)
    first = rows(tmp_path / "run")
    assert 1 <= len(first) <= 8, "".join(seen)
    sweep.main(load_sweep(sweep_yaml, [f"experiment={tmp_path}/run"]))
    after, undisturbed = rows(tmp_path / "run"), rows(swept)
    assert all(after[id] == row for id, row in first.items()), "no finished trial was run again"
    assert all(after[id]["predictions"] == undisturbed[id]["predictions"] for id in after) and len(after) == 8


def test_workers_killed_within_a_unit_and_between_two_are_replaced_and_nothing_is_done_twice(
    sweep_yaml, swept, tmp_path, local_ray, monkeypatch
):
    told, add_rows, added, killed = sweep_tune._Watch.on_trial_result, TrialTable.add, [], []

    def kill_two(self, iteration, trials, trial, result, **info):
        told(self, iteration, trials, trial, result, **info)
        # It has been told nothing new yet. First one with more to do in its unit, then one that has ended its unit.
        if result["pid"] not in killed and result["done"] == bool(killed) and len(killed) < 2:
            killed.append(result["pid"])
            os.kill(result["pid"], signal.SIGKILL)

    def add(self, rows):
        added.extend(row["id"] for row in rows)
        return add_rows(self, rows)

    monkeypatch.setattr(TrialTable, "add", add)
    monkeypatch.setattr(sweep_tune._Watch, "on_trial_result", kill_two)
    sweep.main(load_sweep(sweep_yaml, ["sweep.batch=1", "ray.workers=1", f"experiment={tmp_path}/run"]))
    after, undisturbed = rows(tmp_path / "run"), rows(swept)
    planned = {trial.id for trial in plan(load_sweep(sweep_yaml, [f"experiment={tmp_path}/run"])).trials}
    assert len(killed) == 2 and sorted(added) == sorted(after) == sorted(planned)
    assert planned <= undisturbed.keys()  # which other tests may have added values to
    same = ("predictions", "value", "low", "high")
    assert all(after[id][key] == undisturbed[id][key] for id in after for key in same)


def test_asha_ends_settings_early_and_goes_on_from_the_table(sweep_yaml, tmp_path, local_ray):
    asha = [
        f"experiment={tmp_path}/run",
        "sweep.scheduler=asha",
        "sweep.rungs=[1, 4]",
        "sweep.keep=4",
        "sweep.metric=accuracy",
    ]
    sweep.main(load_sweep(sweep_yaml, asha))
    by_rung = {}
    for row in rows(tmp_path / "run").values():
        by_rung.setdefault(json.loads(row["values"])["evaluate.max_queries"], []).append(row["queries"])
    assert by_rung[1] == [3] * 8 and 1 <= len(by_rung[4]) <= 8 and set(by_rung[4]) == {12}


def test_a_second_run_at_once_is_refused(swept, sweep_yaml):
    from jobs.sweep_train import alone

    with alone(str(swept), "driver"), pytest.raises(StoreError, match="another run works on this sweep"):
        sweep.main(load_sweep(sweep_yaml, [f"experiment={swept}"]))


def test_another_selection_trains_only_whom_it_adds(sweep_yaml, finished, tmp_path):
    made = plan(
        load_sweep(sweep_yaml, [f"experiment={tmp_path}", "select.strategy=active", "select.count=5"])
    )
    trial = made.trials[0]
    with in_this_process():
        make_ready(trial.cfg, trial.stages, root=str(tmp_path), reuse=[str(finished)])
    before, after = (Pool.open(f"{folder}/pool").view() for folder in (finished, trial.cfg.experiment))
    events = [
        json.loads(line) for line in Path(trial.cfg.experiment, "events.jsonl").read_text().splitlines()
    ]
    trained = {user for event in events if event["kind"] == "pack" for user in event["users"]}
    assert len(after.ids) == 5 and trained == {*after.ids} - {*before.ids}


def test_a_donor_of_an_older_release_gives_what_can_be_read(sweep_yaml, copy, tmp_path, caplog):
    pool = Pool.open(f"{copy}/pool")
    header = json.loads(pool.header.to_json()) | {"schema_version": 1}
    open_table(sharers_uri(pool.uri)).update_schema_metadata({HEADER.decode(): json.dumps(header)})
    trial = plan(load_sweep(sweep_yaml, [f"experiment={tmp_path}"])).trials[0]
    early = [stage for stage in trial.stages if stage.name in ("ingest", "adapt", "select_sharers")]
    with in_this_process():
        make_ready(trial.cfg, early, root=str(tmp_path), reuse=[str(copy)])
    with caplog.at_level("INFO"):
        assert adopt_sharers(trial.cfg, [Paths.of(str(copy))]) == 0
    assert not pool_exists(Paths.of(trial.cfg.experiment).pool)
    (told,) = (record.getMessage() for record in caplog.records if "nothing taken over" in record.message)
    assert f"nothing taken over from {copy}" in told and "jobs.pool migrate" in told


def test_equal_adapters_are_asked_once(sweep_yaml, finished):
    trials = [
        replace(t, cfg=replace(t.cfg, experiment=str(finished)))
        for t in plan(load_sweep(sweep_yaml, ["sweep.space.assembly.top_k=[4, 5, 6]"])).trials
    ]
    engine = Engine(trials[0].cfg, slots=4, cache=1000)
    found = engine.rows(trials)
    by_values = {
        (json.loads(r["values"])["method"], json.loads(r["values"])["assembly.sharing_ratio"]): []
        for r in found
    }
    for row in found:
        values = json.loads(row["values"])
        by_values[values["method"], values["assembly.sharing_ratio"]].append(row)
    for same in by_values.values():  # the pool has four sharers: more picks change nothing
        assert [row["answered"] for row in same][1:] == [0, 0] and len(
            {tuple(r["predictions"]) for r in same}
        ) == 1
    assert all(row["answered"] == 0 for row in engine.rows(trials)), "remembered"
    recipe = engine.recipes(trials[0])[0][0]
    assert (
        content(recipe) == content(replace(recipe, user_id="other")) != content(replace(recipe, merge="svd"))
    )


def test_the_memory_of_answers_is_bounded_and_forgets_the_oldest():
    memory = AnswerMemory(5)
    memory.put(("a",), ["1", "2"])
    memory.put(("b",), ["3", "4"])
    assert memory.get(("a",)) == ("1", "2")
    memory.put(("c",), ["5", "6"])
    assert memory.get(("b",)) == () and memory.get(("a",)) and memory.count == 4
