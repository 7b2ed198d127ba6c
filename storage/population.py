"""The population as a Lance table, one row per user: history, queries, preferences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from perpcs.errors import StoreError
from perpcs.records import SPLITS, Item, Population, Query, User
from storage.tables import FORMAT, has_table, open_table, quoted, require_format, store_errors

_TASK = b"perpcs.task"
_FORMAT = 1
_USERS_PER_BATCH = 1000
_ITEM = pa.struct(
    [
        ("id", pa.string()),
        ("date", pa.string()),
        ("fields", pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))),
    ]
)
_QUERY = pa.struct(
    [("id", pa.string()), ("input", pa.string()), ("gold", pa.string()), ("visible", pa.int64())]
)
_FIELDS = [
    ("split", pa.string()),
    ("position", pa.int64()),
    ("id", pa.string()),
    ("history", pa.list_(_ITEM)),
    ("queries", pa.list_(_QUERY)),
    ("preferences", pa.list_(pa.float64())),
]


def write_population(uri: str, population: Population) -> None:
    """Write the whole population in one commit; what was there before is replaced.

    Raises:
        StoreError: the place is not writable.
    """
    import lance

    metadata = {_TASK: population.task.encode(), FORMAT: str(_FORMAT).encode()}
    schema = pa.schema(_FIELDS, metadata=metadata)
    reader = pa.RecordBatchReader.from_batches(schema, _batches(population, schema))
    with store_errors(uri, "writing the population"):
        lance.write_dataset(reader, uri, mode="overwrite")


def read_population(uri: str) -> Population:
    """The population as it was written.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    table = _open(uri)
    users = _read(uri, table, None)
    splits = {name: tuple(user for split, user in users if split == name) for name in SPLITS}
    return Population(task=_task(uri, table), **splits)


def read_task(uri: str) -> str:
    """The name of the task that the population belongs to."""
    return _task(uri, _open(uri))


def read_split(uri: str, split: str) -> tuple[User, ...]:
    """The users of one split, in order, without reading the others."""
    if split not in SPLITS:
        raise StoreError(f"{uri}: no split {split!r}; there are {', '.join(SPLITS)}")
    return tuple(user for _, user in _read(uri, _open(uri), f"split = {quoted(split)}"))


def read_ids(uri: str, split: str) -> tuple[str, ...]:
    """The ids of one split, in order; no histories are read."""
    with store_errors(uri, "reading ids"):
        rows = _open(uri).to_table(columns=["position", "id"], filter=f"split = {quoted(split)}").to_pylist()
    return tuple(row["id"] for row in sorted(rows, key=lambda row: row["position"]))


def read_users(uri: str, ids: Sequence[str]) -> tuple[User, ...]:
    """The named users, in the order of `ids`.

    Raises:
        StoreError: one of them is not in the population.
    """
    if not ids:
        return ()
    names = ", ".join(quoted(user_id) for user_id in dict.fromkeys(ids))
    found = {user.id: user for _, user in _read(uri, _open(uri), f"id IN ({names})")}
    missing = next((user_id for user_id in ids if user_id not in found), None)
    if missing is not None:
        raise StoreError(f"{uri}: no user {missing!r} in the population")
    return tuple(found[user_id] for user_id in ids)


def _batches(population: Population, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows = []
    for position, (split, user) in enumerate(population.users()):
        rows.append(_row(split, position, user))
        if len(rows) == _USERS_PER_BATCH:
            yield pa.RecordBatch.from_pylist(rows, schema=schema)
            rows = []
    yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _row(split: str, position: int, user: User) -> dict[str, Any]:
    return {
        "split": split,
        "position": position,
        "id": user.id,
        "history": [
            {"id": i.id, "date": i.date, "fields": [{"name": n, "value": v} for n, v in i.fields]}
            for i in user.history
        ],
        "queries": [
            {"id": q.id, "input": q.input, "gold": q.gold, "visible": q.visible} for q in user.queries
        ],
        "preferences": list(user.preferences),
    }


def _open(uri: str) -> Any:
    if not has_table(uri):
        raise StoreError(f"{uri}: there is no population here; run the ingest stage first or check the path")
    return require_format(open_table(uri), _FORMAT, uri)


def _task(uri: str, table: Any) -> str:
    metadata = table.schema.metadata or {}
    if _TASK not in metadata:
        raise StoreError(f"{uri}: the table does not name its task; it was not written by perpcs")
    return str(metadata[_TASK].decode())


def _read(uri: str, table: Any, condition: str | None) -> Iterable[tuple[str, User]]:
    with store_errors(uri, "reading users"):
        rows = table.to_table(filter=condition).to_pylist()
    return [(row["split"], _user(row)) for row in sorted(rows, key=lambda row: row["position"])]


def _user(row: dict[str, Any]) -> User:
    return User(
        id=row["id"],
        history=tuple(
            Item(i["id"], tuple((f["name"], f["value"]) for f in i["fields"]), i["date"])
            for i in row["history"]
        ),
        queries=tuple(Query(q["id"], q["input"], q["gold"], q["visible"]) for q in row["queries"]),
        preferences=tuple(row["preferences"]),
    )
