"""From a plain tree of keys and values to frozen dataclasses, refusing whatever does not fit.

Pure: knows dataclasses and their type hints, nothing of files or OmegaConf. `origins` maps a full key to the
place that set it (a file, or the command line), so that a message can say where to look.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Hashable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from perpcs.errors import ConfigError

Origins = Mapping[str, str]

NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def is_section(hint: object) -> bool:
    """Whether a field of this type holds further keys."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def hints(section: type) -> Mapping[str, Any]:
    """Field name -> resolved type, in the order of declaration."""
    return _hints(section)


@cache
def _hints(section: Hashable) -> Mapping[str, Any]:
    assert isinstance(section, type)
    resolved = get_type_hints(section)
    return {field.name: resolved[field.name] for field in dataclasses.fields(section)}


def leaves(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full key, type) of every value below a dataclass."""
    for name, hint in hints(section).items():
        if is_section(hint):
            yield from leaves(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def type_name(hint: Any) -> str:
    """How a type is called in messages and in the list of keys."""
    if get_origin(hint) is Literal:
        return " | ".join(str(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {type_name(get_args(hint)[0])}"
    if get_origin(hint) is types.UnionType:
        return " or ".join("nothing" if arg is types.NoneType else type_name(arg) for arg in get_args(hint))
    return "section" if is_section(hint) else NAMES[hint]


def refuse(key: str, problem: str, origins: Origins) -> NoReturn:
    """One line: where, key, problem."""
    origin = origins.get(key) or next((at for k, at in origins.items() if k.startswith(f"{key}.")), "")
    raise ConfigError(f"{origin}: {key}: {problem}" if origin else f"{key}: {problem}")


def suggestion(key: str, known: list[str]) -> str:
    """`; did you mean …?` for the nearest known key, else a word on where the keys are listed."""
    same_section = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
    leaf = key.rpartition(".")[2]
    by_leaf = sorted((k for k in known if k.rpartition(".")[2] == leaf), key=lambda k: k.count("."))
    near = (
        difflib.get_close_matches(key, same_section, n=1)
        or by_leaf[:1]
        or difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    )
    return f"; did you mean {near[0]}?" if near else "; `--keys` lists them all"


def build(section: type, tree: Mapping[str, Any], origins: Origins, prefix: str = "") -> Any:
    """An instance of a config dataclass.

    tree: every key of the section, resolved (no interpolation left). Raises ConfigError for the first value
    that has the wrong type, or that the section's `check` calls impossible.
    """
    values = {}
    for name, hint in hints(section).items():
        key = prefix + name
        if is_section(hint):
            values[name] = build(hint, tree[name], origins, f"{key}.")
        else:
            values[name] = convert(tree[name], hint, key, origins)
    part = section(**values)
    if hasattr(part, "check"):
        _refuse_impossible(part, prefix, origins)
    return part


def _refuse_impossible(part: Any, prefix: str, origins: Origins) -> None:
    for key, problem in part.check():
        value = getattr(part, key)
        refuse(prefix + key, problem if value in ("", ()) else f"{_shown(value)} {problem}", origins)


def convert(value: Any, hint: Any, key: str, origins: Origins) -> Any:
    """One value as the type its field declares; ConfigError names key, value and what was expected."""
    if value == "???":
        refuse(key, "is left open as ??? in the file; give it a value", origins)
    if get_origin(hint) is types.UnionType:
        if value is None:
            return None
        hint = next(arg for arg in get_args(hint) if arg is not types.NoneType)
    if value is None:
        refuse(key, "has no value; remove the line to use the default", origins)
    if get_origin(hint) is Literal:
        return _choice(value, hint, key, origins)
    if get_origin(hint) is tuple:
        return _sequence(value, get_args(hint)[0], key, origins)
    return _scalar(value, hint, key, origins)


def _choice(value: Any, hint: Any, key: str, origins: Origins) -> Any:
    choices = get_args(hint)
    if value in choices and type(value) in {type(choice) for choice in choices}:
        return value
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint_text = f"; did you mean {near[0]}?" if near else ""
    refuse(key, f"{_shown(value)} is not one of {', '.join(map(str, choices))}{hint_text}", origins)


def _sequence(value: Any, item: Any, key: str, origins: Origins) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        refuse(key, f"{_shown(value)} is not a {type_name(tuple[item, ...])}; write [a, b]", origins)
    return tuple(_scalar(entry, item, key, origins) for entry in value)


def _scalar(value: Any, hint: type, key: str, origins: Origins) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is a subclass of int: an exact comparison keeps `seed: true` out.
    if type(value) is not hint:
        fix = f"; quote it: '{value}'" if hint is str and isinstance(value, int | float) else ""
        refuse(key, f"{_shown(value)} is not {_article(type_name(hint))}{fix}", origins)
    if isinstance(value, float) and not math.isfinite(value):
        refuse(key, f"{value} is not a finite number", origins)
    return value


def _article(name: str) -> str:
    return name if name in ("text", "true or false") else f"a {name}"


def _shown(value: Any) -> str:
    """The value as a user would recognise it, on one line of bearable length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
