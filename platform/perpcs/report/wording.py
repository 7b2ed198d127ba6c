"""Numbers as they are shown, the same in the terminal, in Markdown and in HTML."""

from __future__ import annotations

from perpcs.evaluation.metrics import metric
from perpcs.evaluation.results import Comparison, Gain

UNDEFINED = "–"
_LARGE = ("", "K", "M", "G", "T", "P", "E")
_UNITS = ("B", "KB", "MB", "GB", "TB")
MARKS = {"method": "", "ours": "★ ", "control": "○ "}
"""Put before a method's name: ours and controls are told apart without colour."""


def number(value: float | None) -> str:
    """Three decimals, a dash when undefined."""
    return UNDEFINED if value is None else f"{value:.3f}"


def titled(name: str) -> str:
    """A metric's title, with an arrow where less is better."""
    return metric(name).title + ("" if metric(name).higher_is_better else " ↓")


def signed(value: float | None) -> str:
    """Three decimals with their sign; a true minus, which lines up with the plus."""
    return UNDEFINED if value is None else f"{value:+.3f}".replace("-", "−")


def span(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """An interval in words that read aloud well."""
    if low is None or high is None:
        return "no interval"
    show = signed if sign else number
    return f"{show(low)} to {show(high)}"


def share(gain: Gain | None) -> str:
    """A share of OPPU's gain in percent."""
    return UNDEFINED if gain is None or gain.share is None else f"{gain.share:.0%}".replace("-", "−")


def share_span(gain: Gain | None) -> str:
    """The interval of such a share."""
    if gain is None or gain.low is None or gain.high is None:
        return ""
    return f"{gain.low:.0%} to {gain.high:.0%}".replace("-", "−")


def p_value(p: float) -> str:
    """A p-value with as many digits as mean something."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def size(count: float) -> str:
    """Bytes in decimal units: 0 B, 1.15 KB, 450 KB."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.3g} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Seconds with three significant digits."""
    return f"{seconds:.3g} s"


def operations(count: float | None) -> str:
    """Floating point operations in decimal units: 12 MFLOP, 3.4 TFLOP."""
    if count is None:
        return UNDEFINED
    unit = 0
    while count >= 1000 and unit < len(_LARGE) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {_LARGE[unit]}FLOP"


def users(count: int | None, *, known: bool = True) -> str:
    """A number of users from which something holds; `never` for None, a dash where that is not asked."""
    if count is None:
        return "never" if known else UNDEFINED
    return f"{count:,} users"


def tokens(count: float | None) -> str:
    """A mean number of tokens."""
    return UNDEFINED if count is None else f"{count:,.0f}"


def memory(count: int | None) -> str:
    """Bytes that were measured; a dash where they were not."""
    return size(count) if count else UNDEFINED


def evidence(comparison: Comparison) -> str:
    """Difference, interval and p-value of a comparison."""
    interval = span(comparison.low, comparison.high, sign=True)
    return f"{signed(comparison.difference)}, 95 % interval {interval}, p {_relation(comparison.p_value)}"


def _relation(p: float) -> str:
    shown = p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"
