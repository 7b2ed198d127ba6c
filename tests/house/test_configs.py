"""Every shipped YAML file loads, and its first line is the command that runs it."""

import importlib.util
from pathlib import Path

import pytest

from perpcs.config import load_config
from serve.config import load as load_service

ROOT = Path(__file__).resolve().parents[2]
ALL = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.y*ml"))
SERVICES = [path for path in ALL if path.parent == Path("configs/serve") and path.name != "deploy.yaml"]
CONFIGS = [path for path in ALL if path.parent != Path("configs/serve")]


def test_there_are_configs():
    assert Path("configs/quickstart.yaml") in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_it_loads(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    load_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_its_first_line_is_its_command(path):
    first = (ROOT / path).read_text().splitlines()[0]
    prefix, module, named, *overrides = first.removeprefix("# python ").split()
    assert first.startswith("# python -m jobs.") and prefix == "-m"
    assert named == str(path)
    assert all("=" in override for override in overrides)
    assert importlib.util.find_spec(module), f"{module} does not exist"


@pytest.mark.parametrize("path", SERVICES, ids=str)
def test_a_service_loads_and_says_how_it_is_run(path):
    load_service(str(ROOT / path))
    assert (ROOT / path).read_text().startswith(f"# serve run serve.app:build config={path}\n")
