"""Experiments side by side: which of their differences are real.

Runs of one task that share a configuration digest are seeds of one experiment and are averaged. Two
experiments are paired on the users whose id, queries and golds agree in both, seed by seed; where there are
none they are compared as independent samples, and the result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from perpcs.errors import DataError
from perpcs.evaluation.comparisons import LEVEL
from perpcs.evaluation.contrasts import Contrast, apart, contrasts, same_users, sample_of
from perpcs.evaluation.metrics import GOLD_LOSS, Finish, metric
from perpcs.evaluation.results import Results
from perpcs.evaluation.statistics import Sample, bootstrap, holm, interval, mean_value, permutation_p


@dataclass(frozen=True)
class Group:
    """One experiment: its runs, one per seed, in the order of the seeds."""

    name: str
    task: str
    runs: tuple[Results, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each run."""
        return tuple(run.experiment.seed for run in self.runs)


@dataclass(frozen=True)
class Cell:
    """A method's value in one experiment, mean over its seeds; the interval is over users within seeds."""

    group: str
    method: str
    metric: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """A method in one experiment minus the same method in the first experiment of the task."""

    group: str
    versus: str
    method: str
    metric: str
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    """None where users could not be paired."""
    users: int
    """Users that were paired, over all seeds; 0 when none."""
    p_adjusted: float | None = None
    """Holm's correction over the methods of the same experiment and metric."""

    @property
    def real(self) -> bool:
        """The interval lies on one side of 0, and where users are paired the corrected p-value agrees."""
        return apart(self.low, self.high) and (self.p_adjusted is None or self.p_adjusted <= LEVEL)


@dataclass(frozen=True)
class SideBySide:
    """Everything a comparison of experiments shows."""

    groups: tuple[Group, ...]
    titles: dict[str, str]
    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]
    contrasts: tuple[Contrast, ...]
    """Methods against each other within each experiment."""
    notes: tuple[str, ...]

    def cell(self, group: str, method: str, name: str) -> Cell | None:
        """The value of a method in an experiment, None when it was not evaluated there."""
        wanted = (group, method, name)
        return next((c for c in self.cells if (c.group, c.method, c.metric) == wanted), None)

    def difference(self, group: str, method: str, name: str) -> Difference | None:
        """The difference to the first experiment of the task, None when there is none."""
        wanted = (group, method, name)
        return next((d for d in self.differences if (d.group, d.method, d.metric) == wanted), None)


def compare(results: Sequence[Results], *, resamples: int = 2000) -> SideBySide:
    """Groups runs into experiments and compares each with the first one of its task, method by method.

    Raises DataError with fewer than two runs, or when the same seed of the same configuration comes twice.
    """
    if len(results) < 2:
        raise DataError(f"{len(results)} results given: at least 2 are needed to compare")
    groups = _groups(results)
    cells = tuple(cell for group in groups for cell in _cells(group, resamples))
    differences, notes = [], []
    for index, group in enumerate(groups):
        first = next(other for other in groups if other.task == group.task)
        if first is group:
            if index:
                notes.append(
                    f"{group.name} is {group.task}, another task than {groups[0].name}: not compared"
                )
            continue
        found = _corrected(_differences(group, first, resamples))
        differences += found
        if found and not any(d.users for d in found):
            notes.append(
                f"{group.name} and {first.name} share no users: unpaired, so only large differences show"
            )
    titles = {row.method: row.title for run in results for row in run.rows}
    within = tuple(c for group in groups for c in contrasts(group.name, group.runs, resamples=resamples))
    return SideBySide(groups, titles, cells, tuple(differences), within, (*notes, *_warned(groups)))


def _groups(results: Sequence[Results]) -> tuple[Group, ...]:
    members: dict[tuple[str, str], list[Results]] = {}
    for run in results:
        members.setdefault((run.experiment.task, run.experiment.config_digest), []).append(run)
    groups: list[Group] = []
    for (task, _), runs in members.items():
        runs = sorted(runs, key=lambda run: run.experiment.seed)
        seeds = [run.experiment.seed for run in runs]
        first = runs[0].experiment
        if len(set(seeds)) < len(seeds):
            raise DataError(
                f"{first.name}: seed {max(seeds, key=seeds.count)} of one configuration comes twice"
            )
        name = first.name + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")
        taken = {group.name for group in groups}
        unique = next(
            n for n in (name, *(f"{name} #{i}" for i in range(2, len(results) + 2))) if n not in taken
        )
        groups.append(Group(unique, task, tuple(runs)))
    return tuple(groups)


def _warned(groups: Sequence[Group]) -> list[str]:
    """What the runs themselves warn of, each once, with the experiment's name."""
    said = [f"{group.name}: {line}" for group in groups for run in group.runs for line in run.warnings]
    return list(dict.fromkeys(said))


def _pairs(group: Group) -> list[tuple[str, str]]:
    """(method, metric) of the rows that every run has."""
    first, *rest = [[(row.method, row.metric) for row in run.rows] for run in group.runs]
    return [pair for pair in first if all(pair in other for other in rest)]


def _cells(group: Group, resamples: int) -> list[Cell]:
    cells = []
    for method, name in _pairs(group):
        rows = [row for run in group.runs if (row := run.row(method, name)) is not None]
        value = sum(row.value for row in rows) / len(rows)
        low, high = (
            (rows[0].low, rows[0].high) if len(rows) == 1 else _seeds_interval(group, method, name, resamples)
        )
        cells.append(Cell(group.name, method, name, value, low, high))
    return cells


def _seeds_interval(
    group: Group, method: str, name: str, resamples: int
) -> tuple[float | None, float | None]:
    samples = [s for run in group.runs if (s := sample_of(run, method, name)) is not None]
    if len(samples) < len(group.runs):
        return None, None
    draws = bootstrap(samples, metric(name).finish, resamples=resamples, same_users=same_users(group.runs))
    return interval(draws, min(len(sample.user_ids) for sample in samples))


def _differences(group: Group, first: Group, resamples: int) -> list[Difference]:
    shared = [pair for pair in _pairs(group) if pair in _pairs(first)]
    if {r.experiment.fingerprint for r in group.runs} != {r.experiment.fingerprint for r in first.runs}:
        # Nats per token of two tokenizers are two units.
        shared = [(method, name) for method, name in shared if name != GOLD_LOSS]
    return [_difference(group, first, method, name, resamples) for method, name in shared]


def _difference(group: Group, first: Group, method: str, name: str, resamples: int) -> Difference:
    finish = metric(name).finish
    matched = _matched(group, first, method, name)
    if matched:
        same = len({pair[0].user_ids for pair in matched}) == 1 and same_users((*group.runs, *first.runs))
        return _paired(
            (group.name, first.name, method, name), matched, finish, resamples=resamples, same_users=same
        )
    one, two = ([s for run in g.runs if (s := sample_of(run, method, name))] for g in (group, first))
    if len(one) < len(group.runs) or len(two) < len(first.runs):
        rows = [[run.row(method, name) for run in g.runs] for g in (group, first)]
        value, other = (sum(row.value for row in part if row) / len(part) for part in rows)
        return Difference(group.name, first.name, method, name, value - other, None, None, None, 0)
    draws = bootstrap(one, finish, resamples=resamples, seed=0, same_users=same_users(group.runs))
    draws = draws - bootstrap(two, finish, resamples=resamples, seed=1, same_users=same_users(first.runs))
    users = min(len(sample.user_ids) for sample in (*one, *two))
    low, high = interval(draws, users)
    gap = mean_value(one, finish) - mean_value(two, finish)
    return Difference(group.name, first.name, method, name, gap, low, high, None, 0)


def _paired(
    names: tuple[str, str, str, str],
    matched: Sequence[tuple[Sample, Sample]],
    finish: Finish,
    *,
    resamples: int,
    same_users: bool,
) -> Difference:
    one, two = [a for a, _ in matched], [b for _, b in matched]
    draws = bootstrap(one, finish, resamples=resamples, same_users=same_users)
    draws = draws - bootstrap(two, finish, resamples=resamples, same_users=same_users)
    low, high = interval(draws, min(len(a.user_ids) for a in one))
    p = permutation_p(matched, finish, same_users=same_users)
    users = len(one[0].user_ids) if same_users else sum(len(a.user_ids) for a in one)
    gap = mean_value(one, finish) - mean_value(two, finish)
    return Difference(*names, gap, low, high, p, users)


def _corrected(found: Sequence[Difference]) -> list[Difference]:
    """With Holm's correction among the paired differences under each metric."""
    out = list(found)
    for name in dict.fromkeys(d.metric for d in found):
        places = [i for i, d in enumerate(found) if d.metric == name and d.p_value is not None]
        adjusted = holm([d.p_value for i in places if (d := found[i]).p_value is not None])
        for i, p in zip(places, adjusted, strict=True):
            out[i] = replace(found[i], p_adjusted=p)
    return out


def _matched(group: Group, first: Group, method: str, name: str) -> list[tuple[Sample, Sample]]:
    """Per seed the two samples of the users in common; empty unless every seed has at least 2 such users."""
    if group.seeds != first.seeds:
        return []
    matched = []
    for one, two in zip(group.runs, first.runs, strict=True):
        a, b = sample_of(one, method, name), sample_of(two, method, name)
        # Sums of macro-F1 are per label, so swapping users needs the same labels in the same places.
        if a is None or b is None or (name == "macro_f1" and one.labels != two.labels):
            return []
        common = _common(one, two, a, b)
        if len(common) < 2:
            return []
        matched.append((a.only(common), b.only(common)))
    return matched


def _common(one: Results, two: Results, a: Sample, b: Sample) -> list[str]:
    counts = dict(zip(b.user_ids, b.queries.tolist(), strict=True))
    return [
        user
        for user, queries in zip(a.user_ids, a.queries.tolist(), strict=True)
        if counts.get(user) == queries and one.user_digests.get(user) == two.user_digests.get(user)
    ]
