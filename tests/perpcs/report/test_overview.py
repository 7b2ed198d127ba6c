"""The overview of several experiments: means over seeds, the best of a line, and users by the likeness of their sharers."""

import itertools
from dataclasses import replace

import pytest

from perpcs.evaluation.across import compare
from perpcs.report.overview import by_likeness, overview, overview_markdown, tables

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def side(make):
    runs = [make(seed=seed, name=f"runs/a/seed-{seed}") for seed in SEEDS]
    worse = make(shift=-0.3, name="runs/b/seed-0")
    worse = replace(worse, experiment=replace(worse.experiment, config_digest="beef"))
    return compare([*runs, worse], resamples=300)


def cells(line):
    return [text.strip() for text in line.strip("|").split("|")]


def test_a_line_has_the_means_over_seeds_and_its_best_in_bold(side):
    head, _, first, second = overview(side).splitlines()
    names, line = cells(head), cells(first)
    assert line[0] == "a: LaMP-2M, 16 users, 2 seeds" and cells(second)[0] == "b: LaMP-2M, 16 users, 1 seed"
    runs = side.groups[0].runs
    mean = sum(run.row("adapted", "accuracy").value for run in runs) / 2
    assert line[names.index("task-adapted base")] == f"{mean:.3f}"
    values = [float(text.strip("*")) for text in line[1 : names.index("random pieces") + 1]]
    assert [text.startswith("**") for text in line[1 : len(values) + 1]] == [v == max(values) for v in values]
    gap = line[names.index("OPPU \\(own LoRA)".replace("\\", "") + " − another user's LoRA")]
    assert gap.startswith("+") and gap.endswith("*")


def test_every_experiment_has_a_table_of_all_its_methods(side):
    found = dict(tables(side))
    assert list(found) == ["a: LaMP-2M, 16 users, 2 seeds", "b: LaMP-2M, 16 users, 1 seed"]
    lines = found["a: LaMP-2M, 16 users, 2 seeds"].splitlines()[2:]
    assert len(lines) == len(side.groups[0].runs[0].methods)
    oppu = next(cells(line) for line in lines if "OPPU" in line)
    assert oppu[-1] == "–" and oppu[-2].startswith("+") and "[" in oppu[1]


def test_users_are_told_apart_by_the_likeness_of_their_nearest_sharer(side):
    group = side.groups[0]
    parts = by_likeness(group, ["oppu"])
    assert sum(part.users for part in parts) == 32 and all(
        a.most <= b.least for a, b in itertools.pairwise(parts)
    )
    whole = sum(part.values["oppu"] * part.users for part in parts) / 32
    assert whole == pytest.approx(side.cell(group.name, "oppu", "accuracy").value, abs=1e-9)
    unknown = replace(group, runs=tuple(replace(run, choices=None) for run in group.runs))
    assert by_likeness(unknown, ["oppu"]) == []
    assert "## Users by the likeness" in overview_markdown(side)


def test_where_golds_were_scored_their_loss_has_a_line_and_differences_of_its_own(make):
    runs = [make(seed=seed, name=f"runs/a/seed-{seed}", likelihood=True) for seed in SEEDS]
    scored = compare(runs, resamples=300)
    head, _, first, second = overview(scored).splitlines()
    names, line = cells(head), cells(second)
    assert cells(first)[0] + ", Nats per gold token ↓" == line[0]
    values = {name: float(text.strip("*")) for name, text in zip(names[1:-3], line[1:-3], strict=True)}
    best = min(values, key=values.get)
    assert line[names.index(best)].startswith("**") and best == "gradient key, whole sharers"
    ((_, table),) = tables(scored)
    head, _, *rows = map(cells, table.splitlines())
    assert head[-2:] == ["− task-adapted base: Nats per gold token ↓", "− OPPU: Nats per gold token ↓"]
    own = next(row for row in rows if row[0].startswith("OPPU"))
    assert own[-2].startswith("−") and own[-1] == "–", "less is better, and nothing is compared with itself"
