import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import pytest

from perpcs.evaluation.results import Choices, Results
from perpcs.report.activity import thirds
from perpcs.report.cost_plot import break_even_plot, compute_even, storage_even
from perpcs.report.html import page, pictures, write_report

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "image", "rect", "stop"}


class Reader(HTMLParser):
    """Collects tags and text, and insists that tags nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            value for name, value in attrs if name in ("href", "src", "xlink:href", "srcset", "action")
        ]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        before = list(self.open)
        self.handle_starttag(tag, attrs)
        self.open = before

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def text(results):
    return page(results)


def test_the_page_is_well_formed_and_its_ids_are_unique(text):
    reader = read(text)
    assert {"h1", "table", "svg", "figure", "dl"} <= set(reader.tags)
    assert len(reader.ids) == len(set(reader.ids))


def test_nothing_is_asked_of_the_network(text):
    reader = read(text)
    assert all(link.startswith(("#", "data:")) for link in reader.links)
    assert not {"script", "link", "iframe", "img"} & set(reader.tags)
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)[^)]*\)", text)


def test_user_text_is_escaped(text, results):
    # the made-up population has a user called <script>…$, who is named in the heat map
    assert any("<script>" in user for user in results.choices.targets)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    evil = replace(results.experiment, name='"><img src=x onerror=alert(1)>', command="</pre><script>x")
    page_of = page(replace(results, experiment=evil, warnings=("<b>user</b>",)))
    assert "<img" not in page_of
    assert "<script" not in page_of
    assert "<b>user" not in page_of


def test_same_results_same_bytes_and_no_settings_left_behind(results, text):
    before = dict(matplotlib.rcParams)
    assert page(results) == text
    assert dict(matplotlib.rcParams) == before


def test_pictures_say_what_they_show(results):
    drawn = pictures(results)
    assert [picture.name for picture in drawn] == ["headline", "storage", "break-even", "choices"]
    for picture in drawn:
        assert picture.svg.startswith("<svg")
        assert 'role="img"' in picture.svg
        assert "aria-label=" in picture.svg
    assert "OPPU (own LoRA) 0.8" in drawn[0].alt
    assert "gradient key: rank correlation with truth +0.8" in drawn[3].alt


def test_sections_and_verdicts(text):
    said = " ".join(read(text).text)
    for heading in (
        "What the intervals support",
        "Results",
        "Plots",
        "Comparisons",
        "Cost",
        "How to reproduce",
    ):
        assert heading in said
    assert "Is it personal at all?" in said
    assert "OPPU (own LoRA) is better than another user's LoRA" in said
    assert "python -m jobs.pipeline" in said


def test_results_with_hardly_anything_still_make_a_page(results, make, tmp_path):
    path = write_report(Results(results.experiment, ()), tmp_path / "deep" / "report.html")
    assert "nothing to state" in path.read_text("utf-8")
    bare = replace(results, comparisons=(), gains=(), choices=Choices((), (), {}), rows=results.rows[:1])
    assert [picture.name for picture in pictures(bare)] == ["headline", "storage"]
    read(page(bare))


def test_break_even_by_hand(results):
    own, gradient = (results.row(name, "accuracy") for name in ("oppu", "gradient"))
    # 3,932,160 / (163,840 - 144) = 24.02: cheaper from the 25th user on
    assert storage_even(gradient, own) == "25 users"
    assert storage_even(own, own) == "–"
    assert storage_even(replace(gradient, bytes_per_user=200_000.0), own) == "never"


def with_work(results):
    """The made-up rows with operations: OPPU 18e9 a user, assembly 2e9 a user and 1e12 for the pool."""
    spent = {"oppu": (9e9, 9e9, 0.0), "gradient": (1e9, 1e9, 1e12)}
    rows = tuple(
        replace(row, forward_flops=f, backward_flops=b, pool_flops=p)
        for row in results.rows
        if row.method in spent
        for f, b, p in [spent[row.method]]
    )
    return replace(results, rows=rows)


def test_operations_break_even_by_hand(results):
    priced = with_work(results)
    own, gradient = (priced.row(name, "accuracy") for name in ("oppu", "gradient"))
    # 1e12 / (18e9 - 2e9) = 62.5
    assert compute_even(gradient, own) == "63 users"
    assert compute_even(results.row("gradient", "accuracy"), own) == "–"
    picture = break_even_plot(priced)
    assert "18 GFLOP for each" in picture.alt and "1 TFLOP once" in picture.alt
    assert "Operations to prepare" in picture.svg
    assert "Operations to prepare" not in break_even_plot(results).svg


def test_no_break_even_without_a_method_to_draw(results):
    alone = replace(results, rows=tuple(row for row in results.rows if row.method == "oppu"))
    assert break_even_plot(alone) is None


def test_users_by_activity(results):
    ids = sorted(results.user_digests)
    busy = replace(results, user_items={user: 2 + i for i, user in enumerate(ids)})
    groups = thirds(busy)
    assert [(g.least, g.most, len(g.users)) for g in groups] == [(2, 6, 5), (7, 11, 5), (12, 17, 6)]
    sums = next(s for s in results.user_sums if (s.method, s.metric) == ("oppu", "accuracy"))
    hits = dict(zip(sums.user_ids, (row[0] for row in sums.sums), strict=True))
    first = groups[0]
    assert first.values["oppu"][0] == pytest.approx(sum(hits[u] for u in first.users) / (25 * 5))
    assert "Users by activity" in page(busy)
    assert thirds(results) == [] and "Users by activity" not in page(results)
