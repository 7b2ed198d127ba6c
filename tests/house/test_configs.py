"""Every shipped YAML file loads, and its first line is the command that runs it."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from jobs.sweep_plan import check_effects
from perpcs.config import load_config
from perpcs.sweep.config import load_sweep
from serve.config import load as load_service

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("configs/ray", "configs/serve")
"""Folders with files that are no experiments; their own tests load them."""
CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "configs").rglob("*.y*ml")
    if str(path.relative_to(ROOT).parent) not in OTHERS
)
SERVICES = [
    path for path in sorted((ROOT / "configs" / "serve").glob("*.yaml")) if path.name != "deploy.yaml"
]


def test_there_are_configs():
    assert Path("configs/quickstart.yaml") in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_it_loads(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    if path.parent.name == "sweeps":
        check_effects(load_sweep(path))
    else:
        load_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_its_first_line_is_its_command(path):
    first = (ROOT / path).read_text().splitlines()[0]
    prefix, module, named, *overrides = first.removeprefix("# python ").split()
    assert first.startswith("# python -m jobs.") and prefix == "-m"
    assert named == str(path)
    assert all("=" in override for override in overrides)
    assert importlib.util.find_spec(module), f"{module} does not exist"


def test_the_runtime_environment_of_submitted_jobs():
    """Ray's own class refuses unknown fields; what workers of a local Ray get is in it too."""
    from ray.runtime_env import RuntimeEnv

    from jobs.runtime import WORKER_ENV

    given = yaml.safe_load((ROOT / "configs" / "ray" / "job.yaml").read_text())
    made = RuntimeEnv(**given)
    assert made["env_vars"] == WORKER_ENV | {"PYTHONPATH": "platform"}
    first = (ROOT / "configs" / "ray" / "job.yaml").read_text().splitlines()[0]
    assert first.startswith(
        "# ray job submit --working-dir . --runtime-env configs/ray/job.yaml -- python -m jobs."
    )


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_a_service_loads_and_says_how_it_is_run(path):
    load_service(str(path))
    named = path.relative_to(ROOT)
    assert path.read_text().startswith(f"# serve run serve.app:build config={named}\n")
