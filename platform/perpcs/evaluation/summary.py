"""From the methods' answers to results: rows, comparisons, shares of OPPU's gain, and warnings."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from perpcs.errors import DataError
from perpcs.evaluation.comparisons import Key, Scored, SummaryOptions, compare_all, ends, gains_of
from perpcs.evaluation.metrics import GOLD_LOSS, labels_of, metric, task_metrics
from perpcs.evaluation.results import (
    Choices,
    Experiment,
    MethodOutput,
    Results,
    Role,
    Row,
    UserSums,
    priced,
)
from perpcs.evaluation.statistics import bootstrap

FEW_USERS, FEW_QUERIES, DOMINANT = 10, 100, 0.2
"""Fewer users or queries, or a user with a larger share of the queries, give a warning."""


def build_results(
    outputs: Sequence[MethodOutput],
    *,
    experiment: Experiment,
    titles: Mapping[str, tuple[str, Role]],
    choices: Choices | None = None,
    user_items: Mapping[str, int] | None = None,
    options: SummaryOptions | None = None,
) -> Results:
    """Results of one experiment (one seed) from its methods' answers, rows in the order of the outputs.

    titles: method → (human name, role); a method without an entry keeps its name and is a plain method.
    user_items: history items of each target.
    Raises DataError when there is no output, a method comes twice, or a query has two golds.
    """
    options = options or SummaryOptions()
    golds = _golds(outputs)
    names = task_metrics(experiment.task)
    if all(output.losses for output in outputs):
        names = (*names, GOLD_LOSS)
    labels = (options.labels or labels_of(tuple(golds.values()))) if "macro_f1" in names else ()
    scored = {output.method: Scored(output, names, labels) for output in outputs}
    roles = {name: titles.get(name, (name, "method"))[1] for name in scored}
    comparisons = tuple(c for name in names for c in compare_all(scored, roles, name, options=options))
    gains, problems = gains_of(scored, names, comparisons, options=options)
    return Results(
        experiment=experiment,
        rows=tuple(
            _row(s, name, experiment=experiment, titles=titles, options=options)
            for s in scored.values()
            for name in names
        ),
        comparisons=comparisons,
        gains=gains,
        warnings=(*_data_warnings(golds), *_method_warnings(scored, len(golds)), *problems),
        choices=choices,
        labels=tuple(labels),
        user_sums=tuple(_user_sums(scored, names)) if options.keep_users else (),
        user_digests=_digests(golds) if options.keep_users else {},
        user_items=dict(user_items or {}) if options.keep_users else {},
    )


def _golds(outputs: Sequence[MethodOutput]) -> dict[Key, str]:
    """The gold of every query that any method answered."""
    if not outputs:
        raise DataError("no method was evaluated; name at least one in evaluate.methods")
    twice = [name for name, times in Counter(output.method for output in outputs).items() if times > 1]
    if twice or len({output.seed for output in outputs}) > 1:
        raise DataError(
            f"outputs must be of one seed, each method once; repeated: {', '.join(twice) or 'seeds'}"
        )
    golds: dict[Key, str] = {}
    for output in outputs:
        for key, gold in zip(output.keys, output.golds, strict=True):
            if golds.setdefault(key, gold) != gold:
                raise DataError(
                    f"method {output.method}: query {key[1]} of user {key[0]} has another gold than before"
                )
    return golds


def _digests(golds: Mapping[Key, str]) -> dict[str, str]:
    hashes: dict[str, hashlib._Hash] = {}
    for (user, query), gold in sorted(golds.items()):
        digest = hashes.setdefault(user, hashlib.sha256())
        digest.update(f"{len(query)}:{query}{len(gold)}:{gold}".encode())
    return {user: digest.hexdigest()[:12] for user, digest in hashes.items()}


def _row(
    scored: Scored,
    name: str,
    *,
    experiment: Experiment,
    titles: Mapping[str, tuple[str, Role]],
    options: SummaryOptions,
) -> Row:
    output, finish = scored.output, metric(name).finish
    sample = scored.sample(name)
    title, role = titles.get(output.method, (output.method, "method"))
    replicates = bootstrap([sample], finish, resamples=options.resamples)
    low, high = ends(replicates, len(sample.user_ids))
    return Row(
        task=experiment.task,
        method=output.method,
        title=title,
        role=role,
        metric=name,
        value=round(sample.value(finish), 6),
        low=low,
        high=high,
        users=len(sample.user_ids),
        queries=len(scored.keys),
        seed=output.seed,
        note=output.note,
        **priced(output.cost),
    )


def _data_warnings(golds: Mapping[Key, str]) -> Iterator[str]:
    """What the evaluated data cannot show, whatever the methods are."""
    per_user = Counter(user for user, _ in golds)
    if len(per_user) < FEW_USERS:
        yield f"only {len(per_user)} users: intervals over users are wide and say little about other users"
    if len(golds) < FEW_QUERIES:
        yield f"only {len(golds)} queries: differences of a few points cannot be seen"
    user, most = per_user.most_common(1)[0]
    if len(per_user) > 1 and most > DOMINANT * len(golds):
        yield f"user {user} has {most / len(golds):.0%} of the queries: the values are largely this user's"


def _method_warnings(scored: Mapping[str, Scored], queries: int) -> Iterator[str]:
    for method, entry in scored.items():
        if len(entry.keys) < queries:
            yield (
                f"method {method} answered {len(entry.keys)} of {queries} queries: its row is over these, "
                "its comparisons over the ones in common"
            )


def _user_sums(scored: Mapping[str, Scored], names: Sequence[str]) -> Iterator[UserSums]:
    for method, entry in scored.items():
        for name in names:
            sample = entry.sample(name)
            sums = tuple(tuple(round(float(x), 6) for x in row) for row in sample.sums)
            yield UserSums(method, name, sample.user_ids, tuple(int(q) for q in sample.queries), sums)
