"""YAML files and `key=value` overrides -> ExperimentConfig, or another frozen dataclass. The project's only import of
OmegaConf.

A file may say `defaults: other.yaml` (a path relative to itself): the other file is read first and this one's
keys lie on top of it. Overrides lie on top of both. `${other.key}` refers to any key, given or not.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, overload

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from perpcs.config.schema import ExperimentConfig
from perpcs.config.values import build, hints, is_section, leaves, refuse, suggestion
from perpcs.errors import ConfigError

COMMAND_LINE = "command line"
C = TypeVar("C")

Tree = dict[str, Any]
Flat = dict[str, tuple[Any, str]]
"""Full key -> (value, where it was set); later entries win."""


@overload
def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig: ...
@overload
def load_config(path: str | Path | None, overrides: Sequence[str] = (), *, schema: type[C]) -> C: ...
def load_config(
    path: str | Path | None, overrides: Sequence[str] = (), *, schema: type = ExperimentConfig
) -> Any:
    """The experiment, or other `schema`, that a YAML file and `key=value` overrides describe; no path: defaults.

    Raises ConfigError, one line with place, full key, value and fix, for a missing or malformed file, an
    unknown key, a wrong type, an impossible value, or a `${…}` that cannot be resolved.
    """
    given = {} if path is None else _read_file(Path(path), (), schema)
    return _build(given | _read_overrides(overrides, schema), schema)


class Draft:
    """What files and overrides give, before it is resolved: for many experiments that differ in some values."""

    def __init__(self, given: Flat) -> None:
        self._given = given

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = (), *, aside: str) -> tuple[Draft, Tree]:
        """(the draft, what the file has in the section `aside`, which is no part of an experiment).

        Raises ConfigError as `load_config` does, but for values.
        """
        tree = _read_yaml(Path(path))
        section = tree.pop(aside, None)
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: has no section {aside}:; see docs/sweeps.md for what belongs in it")
        given = _over_parent(tree, Path(path), (), ExperimentConfig)
        return cls(given | _read_overrides(overrides, ExperimentConfig)), section

    def config(self, values: Mapping[str, Any] | None = None, *, origin: str = "") -> ExperimentConfig:
        """The experiment, with `values` by full key on top, which count as set at `origin`. Raises as `load_config`."""
        for key in values or ():
            if key not in LEAVES:
                _refuse_unknown(key, origin, ExperimentConfig)
        config: ExperimentConfig = _build(
            self._given | {key: (value, origin) for key, value in (values or {}).items()}, ExperimentConfig
        )
        return config


def _build(given: Flat, schema: type) -> Any:
    origins = {key: origin for key, (_, origin) in given.items()}
    tree = _resolve(schema, {key: value for key, (value, _) in given.items()}, origins)
    return build(schema, tree, origins)


@cache
def _leaves(schema: type) -> dict[str, Any]:
    return dict(leaves(schema))


LEAVES = _leaves(ExperimentConfig)
"""Full key -> type of every setting of an experiment."""


def to_yaml(config: Any) -> str:
    """A config, or a part of one, as YAML that `load_config` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(asdict(config))))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _read_file(path: Path, children: tuple[Path, ...], schema: type) -> Flat:
    """The file's keys over those of the file it builds upon. children: the files that led here."""
    return _over_parent(_read_yaml(path), path, children, schema)


def _over_parent(tree: Tree, path: Path, children: tuple[Path, ...], schema: type) -> Flat:
    parent = tree.pop("defaults", None)
    own: Flat = {}
    _Flattener(schema, str(path), own).add(tree, schema, "")
    if parent is None:
        return own
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: defaults: {parent!r} is not text; name one file, relative to this one")
    family = (*children, path)
    parent_path = path.parent / parent
    if parent_path.resolve() in {member.resolve() for member in family}:
        raise ConfigError(f"{path}: defaults: {parent} builds upon this file; break the circle")
    return _read_file(parent_path, family, schema) | own


def _read_yaml(path: Path) -> Tree:
    if not path.is_file():
        raise ConfigError(f"{path}: {_missing(path)}")
    try:
        # Not resolved yet: `${…}` may refer to keys of other files. The loader itself refuses duplicate keys.
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error
    except OSError as error:
        raise ConfigError(f"{path}: must hold `key: value` lines ({_first_line(error)})") from error
    except Exception as error:
        # PyYAML's errors, recognised by their mark so that yaml itself need not be imported.
        if (mark := getattr(error, "problem_mark", None)) is None:
            raise
        problem = getattr(error, "problem", None) or "malformed YAML"
        raise ConfigError(f"{path}:{mark.line + 1}: {problem}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, not a list")
    return {str(key): value for key, value in tree.items()}


def _missing(path: Path) -> str:
    if path.is_dir():
        return "is a folder; name a YAML file in it"
    folders = dict.fromkeys([path.parent, Path("configs")])
    found = {entry.stem: str(entry) for folder in folders for entry in sorted(folder.glob("[!.]*.y*ml"))}
    if near := difflib.get_close_matches(path.stem, list(found), n=1, cutoff=0.5):
        return f"no such file; did you mean {found[near[0]]}?"
    return f"no such file; there are {', '.join(list(found.values())[:8])}" if found else "no such file"


class _Flattener:
    """Writes a nested tree into `flat` as full keys set by `origin`, refusing keys that `schema` does not have."""

    def __init__(self, schema: type, origin: str, flat: Flat) -> None:
        self.schema, self.origin, self.flat = schema, origin, flat

    def add(self, tree: Mapping[Any, Any], section: type, prefix: str) -> None:
        known = hints(section)
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if name not in known:
                _refuse_unknown(key, self.origin, self.schema)
            elif not is_section(known[name]):
                self.flat[key] = (value, self.origin)
            elif isinstance(value, Mapping):
                self.add(value, known[name], f"{key}.")
            elif value is not None:  # `lora:` with every line below it commented out is an empty section
                problem = f"{value!r} cannot be given to a section; set {_example(key, self.schema)}"
                refuse(key, problem, {key: self.origin})


def _example(section: str, schema: type) -> str:
    return next(key for key in _leaves(schema) if key.startswith(f"{section}."))


def _refuse_unknown(key: str, origin: str, schema: type) -> None:
    if key in _leaves(schema):
        section, _, leaf = key.rpartition(".")
        refuse(key, f"write it nested: {leaf} below {section}:", {key: origin})
    refuse(key, f"no such key{suggestion(key, list(_leaves(schema)))}", {key: origin})


def _read_overrides(overrides: Sequence[str], schema: type) -> Flat:
    flat: Flat = {}
    for text in overrides:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise ConfigError(f"{COMMAND_LINE}: {text!r} is not key=value; write for example seed=1")
        if key not in _leaves(schema):
            if any(known.startswith(f"{key}.") for known in _leaves(schema)):
                refuse(key, f"is a section; set {_example(key, schema)}=…", {key: COMMAND_LINE})
            _refuse_unknown(key, COMMAND_LINE, schema)
        flat[key] = (_parse_override(key, value, _leaves(schema)[key]), COMMAND_LINE)
    return flat


def _parse_override(key: str, text: str, hint: Any) -> Any:
    """Text stays text where the field is text (`experiment=2024`); elsewhere it is read as in a YAML file."""
    return text if "${" in text or _takes_text(hint, text) else parse_value(key, text)


def parse_value(key: str, text: str) -> Any:
    """An override's value, read as in a YAML file. Raises ConfigError where it cannot be."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]
    except Exception as error:
        raise ConfigError(f"{COMMAND_LINE}: {key}: {text!r} cannot be read: {_first_line(error)}") from error


def _takes_text(hint: Any, text: str) -> bool:
    if get_origin(hint) is tuple:
        return not text.startswith("[")
    return hint is str or (get_origin(hint) is Literal and isinstance(get_args(hint)[0], str))


def _resolve(schema: type, given: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
    """The whole tree, defaults below the given values, with every `${…}` replaced."""
    tree = _plain(asdict(schema()))
    for key, value in given.items():
        *sections, leaf = key.split(".")
        place = tree
        for name in sections:
            place = place[name]
        place[leaf] = value
    if not any("${" in str(value) for value in given.values()):
        return tree
    try:
        resolved: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", "") or "")
        value = given.get(key, "")
        refuse(key, f"{value!r} cannot be resolved: {_first_line(error)}", origins)
    return resolved


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
