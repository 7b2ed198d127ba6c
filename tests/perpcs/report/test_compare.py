import io
from dataclasses import replace

import pytest
from rich.console import Console

from perpcs.errors import DataError
from perpcs.evaluation.across import compare
from perpcs.evaluation.contrasts import judged
from perpcs.report.compare import comparison_markdown, comparison_table, within, write_comparison


def other(run, *, name="second", digest="beef", **more):
    return replace(run, experiment=replace(run.experiment, name=name, config_digest=digest, **more))


def test_same_users_are_paired_and_equal_answers_show_nothing(results):
    side = compare([results, other(results)], resamples=300)
    assert [group.name for group in side.groups] == ["quickstart", "second"]
    assert {d.users for d in side.differences} == {16}
    assert all(d.difference == 0 and d.p_value == 1 and not d.real for d in side.differences)
    assert side.notes == ()


def test_a_real_change_of_the_same_users_is_found(results, make):
    worse = other(make(shift=-0.3))
    found = compare([results, worse], resamples=300).difference("second", "oppu", "accuracy")
    assert found.users == 16
    assert found.real
    assert judged(found.difference, found.metric, real=found.real) == "worse"
    assert found.p_adjusted >= found.p_value
    assert found.p_value < 0.01
    expected = worse.row("oppu", "accuracy").value - results.row("oppu", "accuracy").value
    assert found.difference == pytest.approx(expected, abs=1e-5)


def test_losses_per_token_are_compared_under_one_tokenizer_only(make):
    run = make(likelihood=True)
    same = compare([run, other(run)], resamples=300)
    foreign = compare([run, other(run, fingerprint="another base")], resamples=300)
    assert same.difference("second", "oppu", "gold_loss").difference == 0
    assert foreign.difference("second", "oppu", "gold_loss") is None
    assert foreign.difference("second", "oppu", "accuracy") is not None
    assert {line[3] for line in within(foreign)} == {"Accuracy", "Nats per gold token ↓"}


def test_same_ids_with_other_queries_are_not_the_same_users(results):
    strangers = other(replace(results, user_digests=dict.fromkeys(results.user_digests, "x")))
    side = compare([results, strangers], resamples=300)
    assert all(d.users == 0 and d.p_value is None for d in side.differences)
    assert "share no users: unpaired" in side.notes[0]
    found = side.difference("second", "oppu", "accuracy")
    assert found.low < 0 < found.high


def test_seeds_are_averaged_with_a_narrower_interval(make):
    runs = [make(seed=seed) for seed in (0, 1, 2)]
    strangers = [
        replace(run, user_digests=dict.fromkeys(run.user_digests, f"{i}")) for i, run in enumerate(runs)
    ]
    side = compare(strangers, resamples=500)
    assert [group.name for group in side.groups] == ["quickstart (3 seeds)"]
    assert side.groups[0].seeds == (0, 1, 2)
    cell = side.cell("quickstart (3 seeds)", "oppu", "accuracy")
    rows = [run.row("oppu", "accuracy") for run in runs]
    assert cell.value == pytest.approx(sum(row.value for row in rows) / 3)
    assert cell.high - cell.low < min(row.high - row.low for row in rows)
    assert side.differences == ()


def test_other_tasks_are_shown_but_not_compared(results):
    side = compare([results, other(results, task="LaMP-2N")])
    assert side.differences == ()
    assert "another task than quickstart" in side.notes[0]


def test_files_without_user_sums_show_values_only(results):
    side = compare([results, other(replace(results, user_sums=(), user_digests={}))])
    found = side.difference("second", "oppu", "accuracy")
    assert (found.low, found.p_value, found.real) == (None, None, False)
    assert side.cell("second", "oppu", "accuracy").low == results.row("oppu", "accuracy").low


def test_too_few_and_repeated_runs_are_refused(results):
    with pytest.raises(DataError, match="at least 2"):
        compare([results])
    with pytest.raises(DataError, match="seed 0 of one configuration comes twice"):
        compare([results, results])


def test_table_markdown_and_page(results, make, tmp_path):
    side = compare([results, other(make(shift=-0.3), name="<script>|x")], resamples=300)
    text = write_comparison(side, tmp_path / "compare.html").read_text("utf-8")
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org/", "")
    assert "worse" in text
    written = comparison_markdown(side)
    lines = [line for line in written.split("## Which")[0].splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(results.rows)
    assert text.count('aria-label="quickstart: ') == 1
    assert r"&lt;script&gt;\|x" in lines[0]
    stream = io.StringIO()
    Console(file=stream, width=160).print(comparison_table(side))
    assert "quickstart: LaMP-2M" in stream.getvalue()


def test_methods_are_compared_over_all_seeds_own_minus_other_first(make):
    side = compare([make(seed=seed) for seed in (0, 1, 2)], resamples=300)
    found = next(c for c in side.contrasts if (c.method, c.versus) == ("oppu", "other_oppu"))
    assert found.users == 16  # the same people with the same queries under every seed
    assert found.real and found.verdict == "better"
    runs = side.groups[0].runs
    gaps = [run.comparison("oppu", "other_oppu", "accuracy").difference for run in runs]
    assert found.difference == pytest.approx(sum(gaps) / 3, abs=1e-5)
    single = [run.comparison("oppu", "other_oppu", "accuracy") for run in runs]
    assert found.high - found.low < min(c.high - c.low for c in single)
    assert within(side)[0][1:3] == ["OPPU (own LoRA)", "another user's LoRA"]


def test_one_run_keeps_its_own_comparisons(results):
    side = compare([results, other(results)], resamples=300)
    mine = [c for c in side.contrasts if c.group == "quickstart"]
    assert [(c.method, c.versus, c.p_adjusted) for c in mine] == [
        (c.method, c.versus, c.p_adjusted) for c in results.comparisons
    ]


def test_the_correction_over_methods_takes_back_what_chance_gives(results, make):
    """Nineteen methods without any difference: hardly ever is one called real."""
    called = []
    for seed in range(3):
        again = other(make(seed=100 + seed))
        again = replace(
            again, user_digests=results.user_digests, experiment=replace(again.experiment, seed=0)
        )
        called += [d.real for d in compare([results, again], resamples=200).differences]
    assert sum(called) <= 1
