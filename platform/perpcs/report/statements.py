"""What the intervals support, in sentences: each question a reader has, answered yes, no or open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from perpcs.evaluation.comparisons import ADAPTED, OTHER, OWN, Answer, verdict
from perpcs.evaluation.metrics import metric, telling
from perpcs.evaluation.results import Results, Row
from perpcs.report.wording import evidence, share, share_span


@dataclass(frozen=True)
class Statement:
    """One question, its answer and the numbers behind it."""

    question: str
    answer: Answer
    text: str


def best(results: Results, role: str, name: str) -> Row | None:
    """The row of that role with the best value under the metric."""
    rows = [row for row in results.rows if row.role == role and row.metric == name]
    return max(rows, key=lambda row: metric(name).sign * row.value, default=None)


def statements(results: Results) -> tuple[Statement, ...]:
    """The headline statements under the telling metrics; a question whose rows are missing is left out."""
    return tuple(s for name in telling(results.metrics) for s in _statements(results, name))


def _statements(results: Results, name: str) -> Iterator[Statement]:
    yield from _asked(results, "Is it personal at all?", (OWN, OTHER, name))
    yield from _asked(results, "Does an adapter of one's own help?", (OWN, ADAPTED, name))
    ours = best(results, "ours", name)
    if ours is not None:
        yield from _asked(results, "Does an assembled adapter help?", (ours.method, ADAPTED, name))
        yield from _reached(results, ours)
        for control in ("random_pieces", "other_assembly"):
            question = f"Does the choice of pieces matter ({_title(results, control, name)})?"
            yield from _asked(results, question, (ours.method, control, name))
    yield from _asked(results, "Does the paper's rule help?", ("per_pcs", ADAPTED, name))


def _title(results: Results, method: str, name: str) -> str:
    row = results.row(method, name)
    return row.title if row else method


def _asked(results: Results, question: str, names: tuple[str, str, str]) -> Iterator[Statement]:
    """Whether the first method beats the second."""
    found = results.comparison(*names)
    if found is None:
        return
    answer = verdict(found)
    relation = {"yes": "is better than", "no": "is worse than", "open": "cannot be told from"}[answer]
    method, versus = (_title(results, m, names[2]) for m in names[:2])
    yield Statement(
        question, answer, f"{method} {relation} {versus} ({metric(names[2]).title} {evidence(found)})."
    )


def _reached(results: Results, ours: Row) -> Iterator[Statement]:
    """How much of OPPU's gain our best row reaches, and whether it can be told from OPPU."""
    found = results.comparison(ours.method, OWN, ours.metric)
    if found is None:
        return
    answer = verdict(found)
    relation = {"yes": "is better than", "no": "falls short of", "open": "cannot be told from"}[answer]
    numbers = f"{metric(ours.metric).title} {evidence(found)}"
    text = f"{ours.title} {relation} {_title(results, OWN, ours.metric)} ({numbers})"
    gain = results.gain(ours.method, ours.metric)
    if gain is not None and gain.share is not None:
        text += (
            f"; it reaches {share(gain)} of its gain over the adapted base (95 % interval {share_span(gain)})"
        )
    count = len({row.method for row in results.rows if row.role == "ours"})
    if count > 1:
        text += f". It is the best of {count} of our rows on these very queries, which flatters it a little"
    yield Statement("Is it as good as an adapter of one's own?", answer, text + ".")
