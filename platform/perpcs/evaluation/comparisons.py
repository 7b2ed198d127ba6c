"""Methods against each other, on the same queries: paired differences and shares of OPPU's gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perpcs.evaluation.metrics import GOLD_LOSS, columns, metric
from perpcs.evaluation.results import Comparison, Gain, MethodOutput, Role
from perpcs.evaluation.statistics import Sample, bootstrap, by_user, holm, interval, permutation_p

ADAPTED, OWN, OTHER = "adapted", "oppu", "other_oppu"
LEVEL = 0.05
Key = tuple[str, str]
Answer = Literal["yes", "no", "open"]


@dataclass(frozen=True)
class SummaryOptions:
    """How results are made from answers."""

    resamples: int = 2000
    """Bootstrap resamples of users."""
    permutations: int = 9999
    """Monte Carlo permutations where there are too many users for the exact test."""
    against: tuple[str, ...] = (ADAPTED, OWN)
    """Every method is compared with these."""
    pairs: tuple[Key, ...] = ((OWN, OTHER),)
    """Comparisons made besides; own against other users' adapters asks: is it personal at all?"""
    ours_against: tuple[str, ...] = ("random_pieces", "other_assembly", "per_pcs")
    """Methods of the role `ours` are compared with these too: is it the choice of pieces that helps?"""
    labels: tuple[str, ...] = ()
    """The task's label list for macro-F1; empty: the labels that occur as golds."""
    keep_users: bool = True
    """Keep users' sums, which comparisons of several experiments need; false keeps the file small."""


class Scored:
    """A method's statistics by query, scored once, then grouped by user over any set of queries."""

    def __init__(self, output: MethodOutput, names: Sequence[str], labels: Sequence[str]) -> None:
        self.output = output
        self.keys = output.keys
        self._columns = {
            name: np.array(output.losses, dtype=np.float64)[:, None]
            if name == GOLD_LOSS
            else columns(name, output.predictions, output.golds, labels=labels or None)
            for name in names
        }

    def sample(self, name: str, among: frozenset[Key] | None = None) -> Sample:
        """By user, over all queries or those in `among`."""
        rows = [i for i, key in enumerate(self.keys) if among is None or key in among]
        return by_user(self._columns[name][rows], [self.keys[i][0] for i in rows])


def rounded(value: float | None) -> float | None:
    """A value as it is written."""
    # Six decimals: below what any test set resolves, above what the order of float additions changes.
    return None if value is None else round(float(value), 6)


def ends(replicates: np.ndarray, users: int) -> tuple[float | None, float | None]:
    """Interval of bootstrap replicates, as it is written."""
    low, high = interval(replicates, users)
    return rounded(low), rounded(high)


def _wanted(roles: Mapping[str, Role], options: SummaryOptions) -> list[Key]:
    """(method, versus) of every comparison whose two methods were evaluated, each once."""
    pairs = [(method, versus) for versus in options.against for method in roles]
    pairs += list(options.pairs)
    ours = [method for method, role in roles.items() if role == "ours"]
    pairs += [(method, versus) for versus in options.ours_against for method in ours]
    return [(a, b) for a, b in dict.fromkeys(pairs) if a != b and a in roles and b in roles]


def _paired(a: Scored, b: Scored, name: str) -> tuple[Sample, Sample]:
    """Both methods' samples on the queries that both answered: the same users in the same order."""
    among = None if a.keys == b.keys else frozenset(a.keys) & frozenset(b.keys)
    return a.sample(name, among), b.sample(name, among)


def compare_all(
    scored: Mapping[str, Scored], roles: Mapping[str, Role], name: str, *, options: SummaryOptions
) -> list[Comparison]:
    """All comparisons under one metric, with p-values corrected among those against the same method."""
    made = []
    for method, versus in _wanted(roles, options):
        a, b = _paired(scored[method], scored[versus], name)
        if a.user_ids:
            made.append(_compared(a, b, names=(method, versus, name), options=options))
    adjusted: dict[int, float] = {}
    for versus in dict.fromkeys(c.versus for c in made):
        family = [i for i, c in enumerate(made) if c.versus == versus]
        adjusted |= dict(zip(family, holm([made[i].p_value for i in family]), strict=True))
    # Holm needs all p-values of a family, so the corrected ones are put in afterwards.
    return [Comparison(**{**vars(c), "p_adjusted": round(adjusted[i], 6)}) for i, c in enumerate(made)]


def _compared(a: Sample, b: Sample, *, names: tuple[str, str, str], options: SummaryOptions) -> Comparison:
    finish = metric(names[2]).finish
    low, high = ends(_differences(a, b, names[2], options), len(a.user_ids))
    p = round(permutation_p([(a, b)], finish, resamples=options.permutations), 6)
    difference = round(a.value(finish) - b.value(finish), 6)
    return Comparison(*names, difference, low, high, p, p, len(a.user_ids))


def _differences(a: Sample, b: Sample, name: str, options: SummaryOptions) -> np.ndarray:
    """Paired differences of the metric in resamples of the users that both samples have, [R]."""
    finish = metric(name).finish
    one, two = (bootstrap([sample], finish, resamples=options.resamples) for sample in (a, b))
    return one - two


def gains_of(
    scored: Mapping[str, Scored],
    names: Sequence[str],
    comparisons: Sequence[Comparison],
    *,
    options: SummaryOptions,
) -> tuple[tuple[Gain, ...], list[str]]:
    """Shares of OPPU's gain over the adapted base, and a warning per metric under which there is none."""
    gains: list[Gain] = []
    problems = [
        f"no row {row}: comparisons with it and shares of OPPU's gain are left out; see evaluate.methods"
        for row in (ADAPTED, OWN)
        if row not in scored
    ]
    if problems:
        return (), problems
    others = [method for method in scored if method not in (ADAPTED, OWN)]
    for name in names:
        found = [c for c in comparisons if (c.method, c.versus, c.metric) == (OWN, ADAPTED, name)]
        defined = bool(found) and beats(found[0])
        if not defined:
            problems.append(
                f"OPPU does not clearly beat the task-adapted base under {metric(name).title}: "
                "shares of its gain are undefined"
            )
        gains += [_gain(scored, method, name, options=options if defined else None) for method in others]
    return tuple(gains), problems


def verdict(comparison: Comparison) -> Answer:
    """yes: the method is better than the other; no: it is worse; open: these data cannot tell.

    A yes or no needs both: the whole interval on one side of 0, and a p-value of at most LEVEL. Each alone is
    shaky with few users; the test cannot reach LEVEL at all with fewer than 6.
    """
    if comparison.low is None or comparison.high is None or comparison.p_value > LEVEL:
        return "open"
    sign = metric(comparison.metric).sign
    if comparison.low > 0:
        return "yes" if sign > 0 else "no"
    if comparison.high < 0:
        return "no" if sign > 0 else "yes"
    return "open"


def beats(comparison: Comparison) -> bool:
    """Whether the verdict is yes."""
    return verdict(comparison) == "yes"


def _gain(scored: Mapping[str, Scored], method: str, name: str, *, options: SummaryOptions | None) -> Gain:
    if options is None:
        return Gain(method, name, None, None, None)
    rows = [scored[row] for row in (method, ADAPTED, OWN)]
    among = frozenset.intersection(*(frozenset(row.keys) for row in rows))
    if not among:
        return Gain(method, name, None, None, None)
    finish = metric(name).finish
    samples = [row.sample(name, among) for row in rows]
    this, base, own = (sample.value(finish) for sample in samples)
    draws = [bootstrap([sample], finish, resamples=options.resamples) for sample in samples]
    # A resample in which OPPU gains nothing has no share; beats() keeps these below the interval's own tails.
    usable = (draws[2] - draws[1]) * metric(name).sign > 0
    shares = (draws[0] - draws[1])[usable] / (draws[2] - draws[1])[usable]
    if own == base or not len(shares):
        return Gain(method, name, None, None, None)
    low, high = ends(shares, len(samples[0].user_ids))
    return Gain(method, name, round((this - base) / (own - base), 6), low, high)
