"""LaMP files: `{split}_questions.json` and `{split}_outputs.json`, plain or gzip (METHOD section 7).

Questions with one `user_id` are one user. In a time split their profiles grow: each is a beginning of the
longest, which becomes the history, and every question remembers how much of it it may see. Without `user_id`,
or where the profiles of one user_id do not nest, each question is a user of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from perpcs.errors import DataError
from perpcs.population.files import Where, find_json, read_json, show, write_json
from perpcs.population.items import check_unique, gold_text, read_profile, report, write_profile
from perpcs.population.stream import read_entries
from perpcs.population.tasks import Task, get_task
from perpcs.records import Item, Query, User

SEPARATOR = "::"
"""Between a user_id and a question id, where a question had to become a user of its own."""


@dataclass(frozen=True)
class _Asked:
    id: str
    user_id: str
    """'' when the file names no user."""
    input: str
    gold: str
    items: tuple[Item, ...]


def read_lamp(folder: Path | str, *, split: str, task: Task) -> tuple[User, ...]:
    """The users of one split (train, dev), in the order of their first question; histories oldest first.

    Questions with an empty profile are left out, with a count in the log. Everything that is malformed is a
    DataError that names file, record and field.
    """
    folder = Path(folder)
    questions, outputs = find_json(folder, f"{split}_questions"), find_json(folder, f"{split}_outputs")
    golds = _read_golds(Where(outputs), task)
    notes: Counter[str] = Counter()
    asked = _read_questions(Where(questions), task, golds, notes)
    known = {q.id for q in asked}
    unasked = next((key for key in golds if key not in known), None)
    if unasked is not None:
        raise Where(outputs, f"gold {unasked}").error(
            "id", f"no such question in {questions.name}", "remove the gold"
        )
    users: list[User] = []
    for user_id, group in _by_user(asked, Where(questions), split).items():
        shown = [q for q in group if q.items]
        notes["questions with an empty profile left out"] += len(group) - len(shown)
        users += _users(user_id, shown, notes)
    report(+notes, questions)
    return tuple(users)


def origin(user: User) -> str:
    """The user_id of the file; questions of one person that became users of their own share it."""
    return user.id.split(SEPARATOR)[0]


def write_lamp(
    users: Sequence[User], folder: Path | str, *, split: str, task: Task, packed: bool = True
) -> None:
    """Writes both files of a split, so that another program, or `read_lamp`, can read the population.

    A user without queries is asked about their newest item, which leaves the history: that is how LaMP itself
    was made. `packed`: questions as .json.gz. DataError for a user of whom no question can be made.
    """
    folder = Path(folder)
    questions, golds = [], []
    for user in users:
        for query in user.queries or (_newest_as_query(user, task),):
            profile = write_profile(user.history[: query.visible])
            questions.append({"id": query.id, "input": query.input, "profile": profile, "user_id": user.id})
            golds.append({"id": query.id, "output": query.gold})
    write_json(folder / f"{split}_questions.json{'.gz' if packed else ''}", questions)
    write_json(folder / f"{split}_outputs.json", {"task": task.file_name, "golds": golds})


def _read_golds(where: Where, task: Task) -> dict[str, str]:
    raw = read_json(where.path)
    named = where.text(raw, "task")
    # The published files of both second tasks are sometimes headed LaMP_2 alone.
    if named.replace("-", "_") != task.file_name and not (
        named == "LaMP_2" and task.name.startswith("LaMP-2")
    ):
        try:
            fix = f"set population.task={get_task(named).name}"
        except DataError:
            fix = f"expected {task.file_name}"
        raise where.error("task", f"is {show(named)}, the configuration says {task.name}", fix)
    entries = where.items(where.get(raw, "golds"), "golds")
    ids = [where.inside(f"gold number {n + 1}").text(e, "id", numbers=True) for n, e in enumerate(entries)]
    check_unique(ids, where=where, record="gold")
    return {
        key: gold_text(entry, "output", task=task, where=where.inside(f"gold {key}"))
        for key, entry in zip(ids, entries, strict=True)
    }


def _read_questions(where: Where, task: Task, golds: dict[str, str], notes: Counter[str]) -> list[_Asked]:
    found: list[_Asked] = []
    held: dict[Item, Item] = {}
    for number, entry in enumerate(read_entries(where.path)):
        key = where.inside(f"question number {number + 1}").text(entry, "id", numbers=True)
        place = where.inside(f"question {key}")
        if key not in golds:
            raise place.error("id", "has no gold in the outputs file", "add the gold or remove the question")
        profile = read_profile(place.get(entry, "profile"), task=task, where=place, notes=notes)
        named = isinstance(entry, dict) and entry.get("user_id") is not None
        user_id = place.text(entry, "user_id", numbers=True) if named else ""
        shared = tuple(_shared(item, held) for item in profile)
        found.append(_Asked(key, user_id, place.text(entry, "input"), golds[key], shared))
    check_unique([q.id for q in found], where=where, record="question")
    return found


def _shared(item: Item, held: dict[Item, Item]) -> Item:
    """The item with the texts of an equal one: in a time split every question repeats the profile of those before."""
    same = held.setdefault(replace(item, id=""), item)
    return Item(item.id, same.fields, same.date)


def _by_user(asked: list[_Asked], where: Where, split: str) -> dict[str, list[_Asked]]:
    """Questions of one user together, in the order of the file."""
    nameless = [q.id for q in asked if not q.user_id]
    if not nameless or len(nameless) == len(asked):
        groups: dict[str, list[_Asked]] = {}
        for q in asked:
            # Question ids may recur in the other split, where they are somebody else's.
            groups.setdefault(q.user_id or f"{split}-{q.id}", []).append(q)
        return groups
    raise where.inside(f"question {nameless[0]}").error(
        "user_id", "is missing while other questions have one", "name the user of every question or of none"
    )


def _users(user_id: str, asked: list[_Asked], notes: Counter[str]) -> list[User]:
    """One user when every profile is a beginning of the longest, otherwise one per question."""
    if not asked:
        return []
    longest = max(asked, key=lambda q: len(q.items))
    whole = [_content(item) for item in longest.items]
    if all([_content(item) for item in q.items] == whole[: len(q.items)] for q in asked):
        grows = any(len(q.items) < len(whole) for q in asked)
        queries = tuple(Query(q.id, q.input, q.gold, len(q.items) if grows else None) for q in asked)
        return [User(user_id, longest.items, queries)]
    notes["questions made users of their own, since the profiles of their user_id differ"] += len(asked)
    return [User(f"{user_id}{SEPARATOR}{q.id}", q.items, (Query(q.id, q.input, q.gold),)) for q in asked]


def _content(item: Item) -> tuple[object, ...]:
    # Published item ids begin with the question's, so the same item has another id in every question.
    return item.fields, item.date


def _newest_as_query(user: User, task: Task) -> Query:
    if len(user.history) < 2 or task.name == "LaMP-1":
        raise DataError(
            f"user {user.id}: queries: has none, and no question can be made of the history; "
            "leave the user out"
        )
    variable, output = task.example(user.history[-1])
    question = task.prompt(variable, "full")
    return Query(f"{user.id}/newest", question, output, len(user.history) - 1)
