"""Files of OPPU and Per-Pcs: `[{"user_id", "profile": […], "query": [{"id", "input", "gold"}]}]`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from perpcs.errors import DataError
from perpcs.population.files import Where, write_json
from perpcs.population.items import check_unique, gold_text, read_profile, report, write_profile
from perpcs.population.stream import read_entries
from perpcs.population.tasks import Task
from perpcs.records import Query, User


def read_oppu(path: Path | str, *, task: Task) -> tuple[User, ...]:
    """The users of one file, in its order; users with an empty profile are left out, with a count in the log.

    Everything that is malformed is a DataError that names file, record and field.
    """
    where, notes = Where(Path(path)), Counter[str]()
    ids: list[str] = []
    users = []
    for number, entry in enumerate(read_entries(where.path)):
        user_id = where.inside(f"user number {number + 1}").text(entry, "user_id", numbers=True)
        ids.append(user_id)
        place = where.inside(f"user {user_id}")
        history = read_profile(place.get(entry, "profile"), task=task, where=place, notes=notes)
        queries = _queries(place.items(place.get(entry, "query"), "query"), task=task, where=place)
        if history:
            users.append(User(user_id, history, queries))
        else:
            notes["users with an empty profile left out"] += 1
    check_unique(ids, where=where, record="user")
    report(notes, where.path)
    return tuple(users)


def write_oppu(users: Sequence[User], path: Path | str) -> None:
    """Writes one file. DataError for a question that may see only a part of the history: it has no place."""
    entries = []
    for user in users:
        early = next((q.id for q in user.queries if q.visible not in (None, len(user.history))), None)
        if early is not None:
            raise DataError(
                f"{path}: user {user.id}: query {early}: sees a part of the history only; "
                "write the LaMP format"
            )
        queries = [{"id": q.id, "input": q.input, "gold": q.gold} for q in user.queries]
        entries.append({"user_id": user.id, "profile": write_profile(user.history), "query": queries})
    write_json(Path(path), entries)


def _queries(entries: list[object], *, task: Task, where: Where) -> tuple[Query, ...]:
    ids = [where.inside(f"query number {n + 1}").text(e, "id", numbers=True) for n, e in enumerate(entries)]
    check_unique(ids, where=where, record="query")
    places = [where.inside(f"query {key}") for key in ids]
    return tuple(
        Query(key, place.text(entry, "input"), gold_text(entry, "gold", task=task, where=place))
        for key, place, entry in zip(ids, places, entries, strict=True)
    )
