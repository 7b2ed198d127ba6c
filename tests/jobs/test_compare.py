"""The command that puts finished runs side by side."""

from pathlib import Path

import pytest

from jobs.report import run_program
from perpcs.evaluation.comparisons import SummaryOptions
from perpcs.evaluation.results import Cost, Experiment, MethodOutput, write_results
from perpcs.evaluation.summary import build_results

USERS = tuple(f"u{i % 8}" for i in range(32))
QUERIES = tuple(f"q{i}" for i in range(32))
GOLDS = tuple("comedy" if i % 3 else "action" for i in range(32))


def made(seed):
    answers = {"adapted": ("comedy",) * 32, "own": GOLDS}
    outputs = [
        MethodOutput(m, seed, USERS, QUERIES, a, GOLDS, Cost(0, 0.0, 0, 0.0)) for m, a in answers.items()
    ]
    return build_results(
        outputs,
        experiment=Experiment("demo", "LaMP-2M", seed, 5, 4, 8, 2, "tiny", "abc", 3, "d1"),
        titles={},
        options=SummaryOptions(resamples=200, permutations=199),
    )


@pytest.fixture
def runs(tmp_path):
    """Two finished experiment folders: seeds 0 and 1 of one configuration."""
    folders = [tmp_path / f"run-{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        write_results(made(seed), folder / "results.json")
    return [str(folder) for folder in folders]


def test_two_runs_make_the_pages_and_the_table(runs, tmp_path, capsys):
    out = tmp_path / "pages"
    assert run_program([*runs, "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"compare.md", "compare.html", "overview.md"}
    assert "demo (2 seeds)" in capsys.readouterr().out
    assert "| demo (2 seeds) | own | adapted |" in (out / "compare.md").read_text()
    assert "| demo: " in (out / "overview.md").read_text()


def test_a_results_file_will_do_as_well(runs, tmp_path):
    out = tmp_path / "pages"
    assert run_program([f"{runs[0]}/results.json", runs[1], "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs[:1], "1 results given: at least 2"),
        (lambda runs: [*runs, runs[0]], "seed 0 of one configuration comes twice"),
        (lambda runs: [*runs, "nothing/results.json"], "nothing/results.json: no such file"),
        (lambda runs: [*runs, "--to", "x"], "unrecognized arguments: --to x"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_writes_nothing(runs, tmp_path, capsys, change, message):
    out = tmp_path / "pages"
    assert run_program([*change(runs), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert not out.exists()


def test_an_unfinished_run_is_named(runs, capsys):
    (Path(runs[1]) / "results.json").unlink()
    assert run_program(runs) == 2
    assert "run-1/results.json: no such file; run the evaluation first" in capsys.readouterr().err
