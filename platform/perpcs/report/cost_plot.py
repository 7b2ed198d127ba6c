"""What all users cost together, from a hundred to ten million of them: storage and preparation, pool included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perpcs.evaluation.cost import break_even, total
from perpcs.evaluation.results import Results, Row
from perpcs.report.svg import INK, ROLE_COLORS, Picture, render, style
from perpcs.report.wording import operations, size, users

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST, MOST = 1e2, 1e7
_DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

Terms = tuple[float, float]
"""(once for everybody, for each user)."""


def storage_terms(row: Row) -> Terms:
    """Bytes."""
    return float(row.pool_bytes), row.bytes_per_user


def compute_terms(row: Row) -> Terms | None:
    """Floating point operations; None where the file has none."""
    if row.pool_flops is None or row.forward_flops is None or row.backward_flops is None:
        return None
    return row.pool_flops, row.forward_flops + row.backward_flops


def storage_even(row: Row, own: Row | None) -> str:
    """From how many users on the method stores less than an own adapter for each."""
    return _even(row, own, storage_terms(row), storage_terms(own) if own else None)


def compute_even(row: Row, own: Row | None) -> str:
    """From how many users on preparing everybody, sharers' training included, takes fewer operations than OPPU."""
    return _even(row, own, compute_terms(row), compute_terms(own) if own else None)


def _even(row: Row, own: Row | None, mine: Terms | None, theirs: Terms | None) -> str:
    if own is None or row.method == own.method or not row.pool_bytes or mine is None or theirs is None:
        return users(None, known=False)
    return users(break_even(shared=mine[0], each=mine[1], other=theirs[1]))


def break_even_plot(results: Results) -> Picture | None:
    """Both axes logarithmic; None when there is no method with a pool, or no OPPU, to draw."""
    rows = _shown(results)
    if len(rows) < 2:
        return None
    from matplotlib.figure import Figure

    priced = all(compute_terms(row) is not None for row in rows)
    with style():
        figure = Figure(figsize=(7.6, 3.5), layout="constrained")
        panels = [figure.add_subplot(1, 1 + priced, i + 1) for i in range(1 + priced)]
        _panel(panels[0], rows, [storage_terms(row) for row in rows], "Bytes stored for all users")
        if priced:
            terms = [found for row in rows if (found := compute_terms(row)) is not None]
            _panel(panels[1], rows, terms, "Operations to prepare all users")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
        alt = "; ".join(_said(row, results.row("oppu", row.metric)) for row in rows)
        svg = render(figure, name="break-even", alt=alt)
    return Picture("break-even", CAPTION, svg, alt)


CAPTION = (
    "Cost of all users together. Storage: the pool once, plus the bytes of each user. Operations: training the sharers "
    "once, plus preparing each user; answering is left out, it costs every method the same but for longer prompts "
    "(tokens per question). A line that starts flat is the pool; where it meets OPPU's, the pool has paid for itself."
)


def _shown(results: Results) -> list[Row]:
    """OPPU and the methods with a pool, of several with equal costs the first."""
    rows = [r for r in results.rows if r.metric == results.metrics[0] and r.role != "control"]
    own = [row for row in rows if row.method == "oppu"]
    pooled = {(storage_terms(row), compute_terms(row)): row for row in reversed(rows) if row.pool_bytes}
    return own + list(reversed(pooled.values())) if own else []


def _panel(axes: Axes, rows: Sequence[Row], terms: Sequence[Terms], title: str) -> None:
    steps = [FEWEST * 10 ** (i / 20) for i in range(101)]
    for index, (row, (shared, each)) in enumerate(zip(rows, terms, strict=True)):
        color = INK if row.method == "oppu" else ROLE_COLORS[row.role]
        values = [total(n, each=each, shared=shared) for n in steps]
        axes.plot(
            steps,
            values,
            color=color,
            linestyle=_DASHES[index % len(_DASHES)],
            label=row.title,
            linewidth=1.6,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(FEWEST, MOST)
    axes.grid(axis="both")
    axes.set_xlabel("Users")
    axes.set_title(title, fontsize=9.5)


def _said(row: Row, own: Row | None) -> str:
    shared, each = storage_terms(row)
    text = f"{row.title}: {size(shared)} once and {size(each)} for each user"
    found = compute_terms(row)
    if found is not None:
        text += f", {operations(found[0])} once and {operations(found[1])} for each"
    return text + (f"; less storage than OPPU from {storage_even(row, own)}" if row.pool_bytes else "")
