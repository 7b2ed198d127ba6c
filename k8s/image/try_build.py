"""Run a Dockerfile's steps without Docker: each stage in a root folder of its own, made from a clean Debian.

`python -m k8s.image.try_build FOLDER --arg VARIANT=cpu [--bind PATH]` (root and debootstrap needed; minutes, and the
packages of the image from the index that pip is configured for). The image stays in FOLDER/root. What differs from a
real build: the base is debootstrap's Debian with its own Python of the same minor version, and there are no layers.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "k8s" / "image" / "Dockerfile"
KNOWN = {"ARG", "CMD", "COMMENT", "COPY", "ENV", "FROM", "LABEL", "RUN", "SHELL", "USER", "WORKDIR"}
PACKAGES = "bash,ca-certificates,python3,python3-venv"


@dataclass
class Stage:
    """One FROM: its root folder and what later instructions see."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    folder: str = "/"
    user: str = "0:0"


def context_files() -> Iterator[Path]:
    """What .dockerignore lets into the build: tracked and new files below the names that it takes back in."""
    taken = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *taken],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return (Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file())


def parse(path: Path) -> Iterator[tuple[str, str]]:
    """(instruction, value) of a Dockerfile, comments left out. Raises ValueError for one that is not known here."""
    for step in DockerfileParser(str(path)).structure:
        if step["instruction"] not in KNOWN:
            raise ValueError(f"{path.name}: {step['instruction']}: not known here")
        if step["instruction"] != "COMMENT":
            yield step["instruction"], step["value"]


def new_root(folder: Path, base: Path) -> Path:
    """A copy of the base's root folder."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["cp", "-a", str(base), str(folder)], check=True)
    return folder


def make_base(folder: Path) -> Path:
    """A clean Debian with Python."""
    if not folder.exists():
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (folder / "usr/bin/python").symlink_to("python3")
    return folder


def run_step(stage: Stage, command: str, binds: list[str]) -> None:
    """A RUN, in the stage's root, with the host's name service and the folders in `binds`."""
    mounts = "".join(
        f"mkdir -p {stage.root}{path}; mount --rbind {path} {stage.root}{path}; "
        for path in ("/proc", "/dev", *binds)
    )
    shutil.copy("/etc/resolv.conf", stage.root / "etc/resolv.conf")
    inner = shlex.join(["chroot", str(stage.root), "/usr/bin/env", "-C", stage.folder, *stage.shell, command])
    settings = {
        key: value for key, value in os.environ.items() if key.startswith("PIP_") or key.endswith("_proxy")
    }
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    env |= settings | stage.args | stage.env
    subprocess.run(["unshare", "-m", "bash", "-ec", f"{mounts} exec {inner}"], env=env, check=True)


def copy_step(stage: Stage, words: list[str], stages: dict[str, Stage]) -> None:
    """A COPY, from the context or from an earlier stage."""
    options = [word for word in words if word.startswith("--")]
    *sources, target = (word for word in words if not word.startswith("--"))
    place = stage.root / (Path(stage.folder) / target).as_posix().lstrip("/")
    if options:
        (source,) = sources
        origin = stages[options[0].removeprefix("--from=")].root / source.lstrip("/")
        subprocess.run(["cp", "-a", str(origin), str(place)], check=True)
        return
    for name in context_files():
        for source in sources:
            if name.is_relative_to(source):
                to = place / (name.relative_to(source) if source != "." else name)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, to)


def build(folder: Path, given: dict[str, str], binds: list[str]) -> Stage:
    """Every instruction in turn; the last stage."""
    base = make_base(folder / "base")
    stages: dict[str, Stage] = {}
    globals_: dict[str, str] = {}
    stage: Stage | None = None
    for name, value in parse(DOCKERFILE):
        sys.stdout.write(f"-- {name} {value[:100]}\n")
        sys.stdout.flush()
        if name == "ARG":
            key, _, default = value.partition("=")
            (globals_ if stage is None else stage.args)[key] = given.get(key, default.strip('"'))
        elif name == "FROM":
            alias = value.split()[2] if " AS " in value else "root"
            stage = stages[alias] = Stage(new_root(folder / alias, base))
        elif stage is None:
            raise ValueError(f"{name} before the first FROM")
        else:
            instruction(stage, name, value, stages=stages, binds=binds)
    assert stage is not None
    (folder / "image.json").write_text(
        json.dumps({"env": stage.env, "user": stage.user, "folder": stage.folder})
    )
    return stage


def instruction(stage: Stage, name: str, value: str, *, stages: dict[str, Stage], binds: list[str]) -> None:
    """One instruction inside a stage; LABEL and CMD change nothing in it."""
    text = string.Template(value).safe_substitute({"PATH": os.defpath} | stage.args | stage.env)
    if name == "RUN":
        run_step(stage, value, binds)
    elif name == "COPY":
        copy_step(stage, shlex.split(text), stages)
    elif name == "ENV":
        stage.env |= dict(word.partition("=")[::2] for word in shlex.split(text))
    elif name == "SHELL":
        stage.shell = json.loads(value)
    elif name == "WORKDIR":
        stage.folder = text
        (stage.root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif name == "USER":
        stage.user = text


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m k8s.image.try_build", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the roots go; several GiB")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="a build argument")
    parser.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="PATH",
        help="a folder of this machine's, as pip's own; not one that the Dockerfile writes to, as /opt",
    )
    words = parser.parse_args()
    words.folder.mkdir(parents=True, exist_ok=True)
    given = dict(word.partition("=")[::2] for word in words.arg)
    stage = build(words.folder.resolve(), given, words.bind)
    sys.stdout.write(f"built in {stage.root}\n")


if __name__ == "__main__":
    main()
