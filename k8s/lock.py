"""Write the image's versions: `python -m k8s.lock > k8s/image/constraints.txt`.

The packages that this environment has of what the project needs to run, with their exact versions. Run the tests in
that environment first: what is written is what was tested.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Versions of every package in the image, as tested. Made by: python -m k8s.lock > k8s/image/constraints.txt
# torch's own requirements pin the CUDA libraries that its CUDA build brings.
"""


def needed(wanted: Iterable[Requirement]) -> Iterator[tuple[str, str]]:
    """(name, version) of the requirements, theirs, and so on; what is not installed is left out."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(canonicalize_name(r.name), frozenset(r.extras)) for r in wanted]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        yield name, found.version.partition("+")[0]
        for requirement in map(Requirement, found.requires or ()):
            if _applies(requirement, extras):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""}) | {""})


def constraints() -> str:
    """The file's text."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = {f"{name}=={version}" for name, version in needed(map(Requirement, project["dependencies"]))}
    return HEAD + "".join(f"{line}\n" for line in sorted(lines, key=lambda s: re.split("==", s)[0]))


if __name__ == "__main__":
    sys.stdout.write(constraints())
