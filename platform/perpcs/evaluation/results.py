"""What an evaluation leaves behind: the schema of results.json, read strictly (fields: docs/results.md).

Everything in it is determined by the experiment's configuration and seed, except the keys in TIMES.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from perpcs.errors import DataError
from perpcs.evaluation.strict_json import decode, encode

SCHEMA_VERSION = 2
_READ = (1, SCHEMA_VERSION)
_SINCE_2 = ("forward_flops", "backward_flops", "pool_flops", "query_tokens", "peak_memory")
TIMES = frozenset({"seconds", "peak_memory"})
"""Keys whose values are measured and differ from run to run."""
Role = Literal["method", "control", "ours"]


@dataclass(frozen=True)
class Cost:
    """What a method costs for one user, and what all users share."""

    trainable_parameters: int
    """Trained per target user; 0 for methods that train nothing for the target."""
    bytes_per_user: float
    """Stored for each target user."""
    pool_bytes: int
    """Stored once for everybody (the pieces the method draws from); 0 when it needs no pool."""
    seconds_per_user: float
    """Measured: preparing a target user, without generation."""
    forward_tokens: int = 0
    """Tokens per user through the model while preparing (training or assembling), forward."""
    backward_tokens: int = 0
    """The same, backward."""
    forward_flops: float | None = None
    """Floating point operations of these tokens (cost.py has the arithmetic)."""
    backward_flops: float | None = None
    pool_flops: float | None = None
    """Spent once for everybody: training the sharers' adapters, and their gates where the method searches them."""
    query_tokens: float | None = None
    """Tokens of a question's prompt, mean over queries: what a method that shows history pays at every answer."""
    peak_memory: int | None = None
    """Measured: bytes in use at most while preparing and answering, the base among them."""


@dataclass(frozen=True)
class MethodOutput:
    """What one method answered, one entry per query; the tuples have the same length N."""

    method: str
    seed: int
    user_ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    predictions: tuple[str, ...]
    golds: tuple[str, ...]
    cost: Cost
    note: str = ""
    """Shown in the table, e.g. that the history had no outputs and what was trained on instead."""
    losses: tuple[float, ...] = ()
    """Nats per token of each gold under the method; none where they were not asked for."""

    def __post_init__(self) -> None:
        sizes = {len(self.user_ids), len(self.query_ids), len(self.predictions), len(self.golds)}
        if self.losses:
            sizes.add(len(self.losses))
        if sizes == {0} or len(sizes) != 1:
            raise DataError(
                f"method {self.method}: needs one prediction for each query of each user, and a query; and one loss or none"
            )
        if len(set(self.keys)) != len(self.user_ids):
            raise DataError(
                f"method {self.method}: a query of a user is answered twice; query ids must differ"
            )

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """(user, query) of each entry."""
        return tuple(zip(self.user_ids, self.query_ids, strict=True))


@dataclass(frozen=True)
class Experiment:
    """Where the numbers come from."""

    name: str
    task: str
    seed: int
    base_users: int
    candidates: int
    targets: int
    sharers: int
    base_model: str
    fingerprint: str
    """Hash of the frozen base's weights and tokenizer."""
    pool_version: int
    config_digest: str
    """Hash of the configuration without folder and seed: runs that share it are seeds of one experiment."""
    command: str = ""
    """What to type to get this file again."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The settings worth showing, by full key."""


@dataclass(frozen=True)
class Row:
    """One method under one metric, over all queries; the interval is by bootstrap over users."""

    task: str
    method: str
    title: str
    role: Role
    metric: str
    value: float
    low: float | None
    high: float | None
    """95 % interval; None with fewer than 2 users."""
    users: int
    queries: int
    seed: int
    bytes_per_user: float
    pool_bytes: int
    trainable_parameters: int
    forward_tokens: int
    backward_tokens: int
    seconds: float
    """Measured, per user."""
    note: str
    forward_flops: float | None = None
    backward_flops: float | None = None
    pool_flops: float | None = None
    query_tokens: float | None = None
    peak_memory: int | None = None
    """These five as in `Cost`; None in files of version 1."""


@dataclass(frozen=True)
class Comparison:
    """`method` minus `versus` in units of the metric, on the queries that both answered."""

    method: str
    versus: str
    metric: str
    difference: float
    low: float | None
    high: float | None
    p_value: float
    """Paired permutation test, whole users swapped, two-sided."""
    p_adjusted: float
    """Holm's correction over all comparisons with the same `versus` and `metric`."""
    users: int


@dataclass(frozen=True)
class Gain:
    """Share of OPPU's gain over the task-adapted base that a method reaches; None where OPPU has no gain."""

    method: str
    metric: str
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Choices:
    """Which sharers were chosen for whom."""

    targets: tuple[str, ...]
    sharers: tuple[str, ...]
    weights: Mapping[str, tuple[tuple[float, ...], ...]]
    """Per assembled method [targets, sharers]: the mixing weight, mean over projections."""
    truth: tuple[tuple[float, ...], ...] | None = None
    """Known similarity of preferences [targets, sharers] of a synthetic population; None for real users."""

    def __post_init__(self) -> None:
        named = {f"choices.weights.{name}": matrix for name, matrix in self.weights.items()}
        if self.truth is not None:
            named["choices.truth"] = self.truth
        for name, matrix in named.items():
            if len(matrix) != len(self.targets) or any(len(row) != len(self.sharers) for row in matrix):
                raise DataError(f"{name}: must be {len(self.targets)} targets by {len(self.sharers)} sharers")


@dataclass(frozen=True)
class UserSums:
    """A method's statistics per user under one metric: enough for intervals over any set of these users."""

    method: str
    metric: str
    user_ids: tuple[str, ...]
    queries: tuple[int, ...]
    sums: tuple[tuple[float, ...], ...]
    """[users, C]: hits, absolute errors, squared errors, ROUGE F1, or tp, fp, fn per label (metrics.py)."""


@dataclass(frozen=True)
class Results:
    """The whole of results.json."""

    experiment: Experiment
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    gains: tuple[Gain, ...] = ()
    warnings: tuple[str, ...] = ()
    choices: Choices | None = None
    labels: tuple[str, ...] = ()
    """Label list of macro-F1; empty for tasks without labels."""
    user_sums: tuple[UserSums, ...] = ()
    user_digests: Mapping[str, str] = field(default_factory=dict)
    """Per target, hash of the query ids and golds: users are paired across runs only where it agrees."""
    user_items: Mapping[str, int] = field(default_factory=dict)
    """Per target, history items known before the first query: how active the user is."""

    def row(self, method: str, metric: str) -> Row | None:
        """The row of a method under a metric, None when it was not evaluated."""
        return next((r for r in self.rows if (r.method, r.metric) == (method, metric)), None)

    def comparison(self, method: str, versus: str, metric: str) -> Comparison | None:
        """`method` minus `versus`, None when they were not compared."""
        wanted = (method, versus, metric)
        return next((c for c in self.comparisons if (c.method, c.versus, c.metric) == wanted), None)

    def gain(self, method: str, metric: str) -> Gain | None:
        """The method's share of OPPU's gain, None when there is no such entry."""
        return next((g for g in self.gains if (g.method, g.metric) == (method, metric)), None)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metric names in the order of the rows, headline first."""
        return tuple(dict.fromkeys(row.metric for row in self.rows))

    @property
    def methods(self) -> tuple[str, ...]:
        """Method names in the order of the rows."""
        return tuple(dict.fromkeys(row.method for row in self.rows))


def priced(cost: Cost) -> dict[str, Any]:
    """A row's costs: the keys of `Cost` under the names that rows have."""
    values = dict(vars(cost))
    values["seconds"] = values.pop("seconds_per_user")
    return values


def to_dict(results: Results) -> dict[str, Any]:
    """The JSON object of results.json."""
    return {"version": SCHEMA_VERSION, **encode(results)}


def from_dict(data: Any, *, where: str = "results.json") -> Results:
    """The results of a JSON object; DataError for another version, missing or unknown keys, wrong types."""
    version = data.get("version") if isinstance(data, dict) else None
    if version not in _READ or type(version) is not int:
        raise DataError(
            f"{where}: version is {version!r}, this program reads {' and '.join(map(str, _READ))}; evaluate again"
        )
    data = {key: value for key, value in data.items() if key != "version"}
    return decode(Results, _upgraded(data) if version == 1 else data, where)


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """A file of version 1, which knew neither operations and memory nor users' activity."""
    rows = data.get("rows")
    if isinstance(rows, list):
        rows = [{**dict.fromkeys(_SINCE_2), **row} if isinstance(row, dict) else row for row in rows]
    return {"user_items": {}, **data, "rows": rows}


def write_results(results: Results, path: str | Path) -> Path:
    """Writes results.json in one step (a reader sees the old file or the new one), and returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(to_text(results), "utf-8")
    draft.replace(path)
    return path


def to_text(results: Results) -> str:
    """The text of results.json."""
    return json.dumps(to_dict(results), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_results(path: str | Path) -> Results:
    """Reads results.json; DataError when it is not there, no JSON, or not of this schema."""
    path = Path(path)
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the evaluation first (python -m jobs.evaluate)") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({str(error).splitlines()[0]})") from None
    return from_dict(data, where=str(path))


def without_times(data: Any) -> Any:
    """A JSON value without its measured keys (TIMES): equal for two runs of the same experiment."""
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key not in TIMES}
    return [without_times(value) for value in data] if isinstance(data, list) else data
