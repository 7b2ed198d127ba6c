"""What manifests carry as text: Serve's configuration, runtime environments, entry points, and our own configs."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from k8s.check.render import Object, title

CONFIG_MOUNT = "/etc/perpcs/config/"
SHELL = re.compile(r"[\"'$;&|<>`\\()\n]")
"""KubeRay puts an entry point unquoted into a shell's command line, so none of these arrives as written."""


def check_entrypoints(things: list[Object]) -> Iterator[str]:
    """`python -m MODULE CONFIG key=value…`: the module and the mounted config exist, the shell has nothing to change."""
    files = mounted(things)
    for thing in things:
        if thing.get("kind") != "RayJob":
            continue
        entry = str(thing["spec"].get("entrypoint", "")).strip()
        if SHELL.search(entry):
            yield f"{title(thing)}: entrypoint: {SHELL.search(entry)[0]!r} would be read by the submitter's shell"  # type: ignore[index]
            continue
        words = shlex.split(entry)
        if words[:2] != ["python", "-m"] or len(words) < 4:
            yield f"{title(thing)}: entrypoint: must be python -m MODULE CONFIG key=value…, not {entry!r}"
            continue
        for problem in (*_module(words[2]), *_files(words[3:], files)):
            yield f"{title(thing)}: entrypoint: {problem}"


def mounted(things: list[Object]) -> dict[str, str]:
    """Path in the pods -> text, of the files in the ConfigMap perpcs-config."""
    maps = [t for t in things if t.get("kind") == "ConfigMap" and t["metadata"]["name"] == "perpcs-config"]
    return {CONFIG_MOUNT + name: text for thing in maps for name, text in thing.get("data", {}).items()}


def _module(name: str) -> Iterator[str]:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        yield f"there is no module {name}"


def _files(words: list[str], files: dict[str, str]) -> Iterator[str]:
    config, *overrides = words
    if config not in files:
        yield f"{config} is not among the mounted files ({', '.join(sorted(files)) or 'none'})"
    for word in overrides:
        if "=" not in word:
            yield f"{word!r} is not key=value"


def check_runtime_envs(things: list[Object]) -> Iterator[str]:
    """Through Ray's own class, which warns of unknown keys where this refuses them."""
    from ray.runtime_env import RuntimeEnv

    for thing in things:
        text = thing.get("spec", {}).get("runtimeEnvYAML")
        if not text:
            continue
        try:
            values = yaml.safe_load(text)
            for key in sorted(set(values) - RuntimeEnv.known_fields):
                yield f"{title(thing)}: runtimeEnvYAML: {key}: no such key"
            RuntimeEnv(**{key: value for key, value in values.items() if key in RuntimeEnv.known_fields})
        except (TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
            yield f"{title(thing)}: runtimeEnvYAML: {_first_line(error)}"


def check_serve(things: list[Object]) -> Iterator[str]:
    """serveConfigV2 through Ray's schema with unknown keys refused; the application's builder and config exist."""
    from ray.serve.schema import ServeDeploySchema

    for thing in things:
        text = thing.get("spec", {}).get("serveConfigV2")
        if text is None:
            continue
        try:
            values = yaml.safe_load(text)
            problems = [*unknown_keys(ServeDeploySchema, values)]
            ServeDeploySchema.model_validate(values)
        except (ValidationError, yaml.YAMLError) as error:
            problems = [" ".join(str(error).split())[:300]]
        else:
            problems += [p for app in values["applications"] for p in _application(app, mounted(things))]
        for problem in problems:
            yield f"{title(thing)}: serveConfigV2: {problem}"


def unknown_keys(model: Any, values: Any, where: str = "") -> Iterator[str]:
    """Keys that a pydantic model, or a model inside it, does not have; free-form mappings are not looked into."""
    if isinstance(model, type) and issubclass(model, BaseModel) and isinstance(values, dict):
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        fields |= {name: field.annotation for name, field in model.model_fields.items()}
        for key, value in values.items():
            if key not in fields:
                yield f"{where}{key}: no such key"
            else:
                yield from unknown_keys(fields[key], value, f"{where}{key}.")
    elif get_origin(model) in {Union, UnionType, list}:
        for kind in get_args(model):
            for entry in values if get_origin(model) is list and isinstance(values, list) else [values]:
                yield from unknown_keys(kind, entry, where)


def _application(app: Object, files: dict[str, str]) -> Iterator[str]:
    module, _, name = str(app.get("import_path", "")).partition(":")
    problems = [*_module(module)]
    yield from problems
    if not problems and name not in _names(module):
        yield f"{app['name']}: {module} has no {name}"
    config = app.get("args", {}).get("config", "")
    if config not in files:
        yield f"{app['name']}: args.config: {config} is not among the mounted files"


def _names(module: str) -> set[str]:
    """What a module defines or imports at its top, read without importing it."""
    spec = importlib.util.find_spec(module)
    tree = ast.parse(Path(str(spec.origin)).read_text())  # type: ignore[union-attr]
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_configs(things: list[Object]) -> Iterator[str]:
    """The mounted configs, through the loaders of the programs that read them."""
    from perpcs.config import load_config
    from perpcs.errors import PerpcsError
    from serve.config import load as load_service

    loaders: dict[str, Callable[[str], object]] = {
        "experiment.yaml": load_config,
        "serve.yaml": load_service,
    }
    if importlib.util.find_spec("perpcs.sweep"):
        from perpcs.sweep.config import load_sweep  # type: ignore[import-untyped, import-not-found, unused-ignore]

        loaders["sweep.yaml"] = load_sweep
    files = {Path(path).name: text for path, text in mounted(things).items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        for name in sorted(files):
            if name not in loaders:
                yield f"ConfigMap/perpcs-config: {name}: no program reads it"
                continue
            try:
                loaders[name](str(Path(folder) / name))
            except PerpcsError as error:
                yield f"ConfigMap/perpcs-config: {str(error).replace(f'{folder}/', '')}"
