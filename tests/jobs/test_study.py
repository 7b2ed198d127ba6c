"""Studies: which experiments they run, and what they refuse before the first one."""

from pathlib import Path

import pytest

from jobs import study
from jobs.cli import guarded
from perpcs.evaluation.results import read_results

HERE = Path(__file__).parents[2] / "configs" / "studies"
CONFIGS = [str(HERE / "archetypes.yaml"), str(HERE / "distinct.yaml")]


def test_every_config_runs_under_every_seed_in_a_folder_of_its_own():
    made = study.plan(CONFIGS, ["own.steps=7"], seeds=[0, 3])
    assert [(cfg.experiment, cfg.seed) for cfg in made] == [
        ("runs/studies/archetypes/seed-0", 0),
        ("runs/studies/archetypes/seed-3", 3),
        ("runs/studies/distinct/seed-0", 0),
        ("runs/studies/distinct/seed-3", 3),
    ]
    assert {cfg.own.steps for cfg in made} == {7}
    assert [cfg.population.synthetic.structure for cfg in made[1:3]] == ["archetypes", "distinct"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name config files"),
        ([CONFIGS[0], "--seeds", "1"], "one experiment is no study"),
        ([*CONFIGS, CONFIGS[0]], "two configs have this folder"),
        ([*CONFIGS, "seed=4"], "use --seeds"),
        ([*CONFIGS, "own.stepz=4"], "own.stepz: no such key"),
        ([*CONFIGS, "--seeds", "x"], "invalid int value: 'x'"),
    ],
)
def test_a_bad_study_is_one_line_before_anything_runs(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert guarded(lambda: study.main(argv)) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_study_without_ray_gives_the_same_numbers_and_is_not_run_twice(
    mini_yaml, finished, tmp_path, monkeypatch, capsys
):
    """Two seeds in this process; nothing may start a Ray. The first seed's answers are those of the run over Ray."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.runtime.start_local", lambda: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.remote", lambda *a, **k: pytest.fail("Ray was used"))
    rows = ["adapted", "oppu", "gradient_global", "other_oppu"]
    config = tmp_path / "mini.yaml"
    config.write_text("experiment: run\n" + mini_yaml.read_text())
    argv = [str(config), "ray.address=none", f"evaluate.methods={rows}", "--seeds", "0", "1", "--out", "page"]
    study.main(argv)
    here, there = (read_results(folder / "results.json") for folder in (tmp_path / "run/seed-0", finished))
    assert [row.value for row in here.rows] == [there.row(row.method, row.metric).value for row in here.rows]
    assert "run: LaMP-2M, 3 users, 2 seeds" in (tmp_path / "page" / "overview.md").read_text()
    monkeypatch.setattr("jobs.train_sharers.train_missing", lambda *a, **k: pytest.fail("trained again"))
    study.main(argv)
