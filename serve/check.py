"""Check a file for `serve deploy` before it is deployed: `python -m serve.check configs/serve/deploy.yaml`.

Ray takes misspelt keys without a word and listens on all interfaces unless told otherwise; here both are errors. The
arguments of our application, and its `user_config`, are read by the same loader that the application uses.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from perpcs.errors import ConfigError, PerpcsError
from serve.config import ServeConfig, load_args, reconfigured
from serve.doorman import require_loopback

IMPORT_PATH = "serve.app:build"
EVERYWHERE = ("0.0.0.0", "::")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 with one line for the first thing that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m serve.check", description=__doc__)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--all-interfaces", action="store_true",
        help="listening on all interfaces is meant, as in a container that a network policy guards",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        check_file(arguments.file, all_interfaces=arguments.all_interfaces)
    except PerpcsError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 2
    sys.stdout.write(f"{arguments.file}: ok\n")
    return 0


def check_file(path: str, *, all_interfaces: bool = False) -> None:
    """Raises ConfigError naming the first thing that is wrong."""
    import yaml

    try:
        tree = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({type(error).__name__})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines")
    check_tree(tree, path, all_interfaces=all_interfaces)


def check_tree(tree: Mapping[str, Any], where: str, *, all_interfaces: bool = False) -> None:
    """As `check_file`, for what is in the file; also for a RayService's `serveConfigV2`."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    for key, known in _unknown(tree, ServeDeploySchema, ""):
        near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}"
        raise ConfigError(f"{where}: {key}: no such key{hint}")
    try:
        schema = ServeDeploySchema.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {place}: {first['msg']}") from error
    host = schema.http_options.host
    if host in EVERYWHERE and not all_interfaces:
        raise ConfigError(
            f"{where}: http_options.host: listens on all interfaces; name one (127.0.0.1 behind a proxy), "
            "or say --all-interfaces"
        )
    ours = [app for app in schema.applications if app.import_path == IMPORT_PATH]
    if not ours:
        raise ConfigError(f"{where}: applications: none has import_path: {IMPORT_PATH}")
    for app in ours:
        _check_application(app, host, f"{where}: {app.name}")


def _check_application(app: Any, host: str, where: str) -> None:
    config = load_args(app.args) if _is_here(app.args) else ServeConfig()
    require_loopback(config, [host])
    for deployment in app.deployments:
        if deployment.name not in ("Http", "Engine"):
            raise ConfigError(f"{where}: deployments: {deployment.name!r}: there are Http and Engine")
        if isinstance(deployment.user_config, dict):
            reconfigured(config, deployment.user_config, deployment=deployment.name)


def _is_here(args: Mapping[str, Any]) -> bool:
    """A config of another machine (a mounted one) cannot be read here; it is when the service starts."""
    path = str(args.get("config", ""))
    return not Path(path).is_absolute() or Path(path).exists()


def _unknown(tree: Any, model: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """(full key, known keys) of every key that a pydantic model would ignore."""
    if isinstance(tree, list):
        for i, entry in enumerate(tree):
            yield from _unknown(entry, model, f"{prefix[:-1]}[{i}].")
        return
    if not isinstance(tree, Mapping):
        return
    fields = model.model_fields
    for key, value in tree.items():
        if key not in fields:
            yield f"{prefix}{key}", list(fields)
            continue
        inner = _model_in(fields[key].annotation)
        if inner is not None:
            yield from _unknown(value, inner, f"{prefix}{key}.")


def _model_in(annotation: Any) -> Any:
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


if __name__ == "__main__":
    sys.exit(main())
