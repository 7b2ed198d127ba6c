"""Settings over seeds, the Pareto front and the recommended setting."""

import json

import numpy as np
import pytest

from perpcs.evaluation.metrics import columns, metric
from perpcs.evaluation.statistics import by_user
from perpcs.report.sweep import SweepReport, write_sweep_report
from perpcs.sweep.results import front, point_of, ranked, recommend
from perpcs.sweep.space import Axis


def row(seed, hits, *, nbytes, seconds=0.1):
    """A trial whose users have these numbers of right answers out of 10."""
    golds = ["a"] * (10 * len(hits))
    texts = [("a" if i < h else "b") for h in hits for i in range(10)]
    sample = by_user(
        columns("accuracy", texts, golds), [f"u{u}" for u in range(len(hits)) for _ in range(10)]
    )
    value = sample.value(metric("accuracy").finish)
    return {
        "seed": seed,
        "metrics": json.dumps({"accuracy": [value, value - 0.1, value + 0.1]}),
        "user_sums": json.dumps(
            {"accuracy": [sample.user_ids, sample.queries.tolist(), sample.sums.tolist()]}
        ),
        "bytes_per_user": nbytes,
        "pool_bytes": 1000,
        "seconds_per_user": seconds,
    }


def point(name, hits, *, nbytes, seeds=2, seconds=0.1):
    rows = [row(seed, hits, nbytes=nbytes, seconds=seconds) for seed in range(seeds)]
    return point_of({"method": "gradient", "assembly.top_k": name}, rows, name="accuracy", resamples=400)


def test_a_setting_is_the_mean_of_its_seeds_with_an_interval_over_users():
    rows = [row(1, [9, 9, 3, 9], nbytes=10), row(0, [5, 5, 5, 5], nbytes=30)]
    found = point_of({"method": "gradient"}, rows, name="accuracy", resamples=400)
    assert found.value == pytest.approx((0.75 + 0.5) / 2) and found.seeds == (0, 1)
    assert found.by_seed == (0.5, 0.75) and found.bytes_per_user == 20
    assert found.low < found.value < found.high


def test_the_front_holds_what_nothing_cheaper_reaches():
    points = [
        point(k, [h] * 4, nbytes=b)
        for k, h, b in [(1, 5, 10), (2, 5, 20), (3, 8, 30), (5, 7, 40), (8, 9, 90)]
    ]
    assert [p.values["assembly.top_k"] for p in front(points, lambda p: p.bytes_per_user)] == [1, 3, 8]
    assert [p.values["assembly.top_k"] for p in ranked(points)] == [8, 3, 5, 1, 2]
    assert front([], lambda p: 0.0) == []


def test_the_cheapest_within_one_standard_error_of_the_best_is_recommended():
    best = point(8, [9, 3, 9, 5, 8, 9], nbytes=90)
    close = point(3, [9, 4, 8, 5, 8, 9], nbytes=30)
    surely_worse = point(1, [7, 1, 7, 3, 6, 7], nbytes=10)
    half_done = point(2, [9, 9, 9, 9, 9, 9], nbytes=5, seeds=1)
    assert ranked([best, close, surely_worse])[0].values["assembly.top_k"] in (3, 8)
    assert recommend([best, close, surely_worse, half_done], resamples=400) is close
    assert recommend([best, surely_worse], resamples=400) is best


@pytest.mark.parametrize("grid", [True, False])
def test_the_page_shows_every_setting_and_escapes_text(tmp_path, grid):
    rng = np.random.default_rng(0)
    points = []
    for method in ("gradient", "per_pcs_once"):
        for k in (1, 2, 8):
            for ratio in (0.1, 1.0):
                rows = [row(s, rng.integers(2, 9, 5), nbytes=9 * k) for s in (0, 1)]
                values = {"method": method, "assembly.sharing_ratio": ratio, "assembly.top_k": k}
                points.append(point_of(values, rows, name="accuracy", resamples=100))
    axes = [
        Axis("method", ("gradient", "per_pcs_once")),
        Axis("assembly.sharing_ratio", (0.1, 1.0)),
        Axis("assembly.top_k", (1, 2, 8)),
    ]
    report = SweepReport(
        "<b>sweep</b>", points, axes, recommend(points, resamples=100), 0, grid, "python -m jobs.sweep x.yaml"
    )
    html = write_sweep_report(report, tmp_path / "report.html").read_text()
    assert "<b>sweep</b>" not in html and "&lt;b&gt;sweep" in html
    assert html.count("<tr>") == 1 + len(points)
    assert html.count("<figure>") == (5 if grid else 4)
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html
