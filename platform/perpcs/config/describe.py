"""Looking at configs: flat keys, differences, digests, and the list of all settings with their meaning."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from perpcs.config import schema
from perpcs.config.values import hints, is_section, type_name


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the list of settings; a section's row has type `section` and no default."""

    key: str
    type: str
    default: Any
    doc: str


def as_flat_dict(config: Any) -> dict[str, Any]:
    """Full key -> value of a config or a part of one, in the order of declaration; lists are tuples."""
    return dict(_walk(config, ""))


def _walk(part: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def diff(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of every value that differs between two configs, or two parts, of the same class."""
    old, new = as_flat_dict(a), as_flat_dict(b)
    return [(key, old[key], new[key]) for key in old if old[key] != new[key]]


def digest(*parts: Any) -> str:
    """16 hex digits that are the same exactly when all values are: of configs, parts, and plain values.

    Keys count by name, not by order, so that a setting may move in the schema.
    """
    plain = [as_flat_dict(part) if is_dataclass(part) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe(root: Any = None) -> list[Setting]:
    """Every section and setting in the order of declaration; root: a config (default: an experiment's)."""
    return list(_settings(schema.ExperimentConfig() if root is None else root, ""))


def _settings(part: Any, prefix: str) -> Iterator[Setting]:
    docs = attribute_docs(type(part).__module__)[type(part).__name__]
    for name, hint in hints(type(part)).items():
        key, value = prefix + name, getattr(part, name)
        if is_section(hint):
            doc = docs.get(name) or inspect.cleandoc(hint.__doc__ or "").splitlines()[0]
            yield Setting(key, "section", None, doc)
            yield from _settings(value, f"{key}.")
        else:
            yield Setting(key, type_name(hint), value, docs.get(name, ""))


@cache
def attribute_docs(module: str = schema.__name__) -> dict[str, dict[str, str]]:
    """Class -> field -> the text of the string literal that follows the field in the module, on one line."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: dict(_field_docs(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _field_docs(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, after in zip(node.body, node.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            yield field.target.id, " ".join(str(after.value.value).split())
