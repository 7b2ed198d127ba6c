"""One local Ray for all tests of the jobs."""

import shutil

import pytest

CPUS = 4
"""Of the tests' Ray, on paper."""


@pytest.fixture(scope="session")
def local_ray():
    """A Ray with four CPUs; `jobs.runtime.connect` uses it as it finds it."""
    import ray

    from jobs.runtime import start_local

    start_local(num_cpus=CPUS)
    yield ray
    ray.shutdown()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """After a failure the next test gets a Ray of its own: one that lost a message, or that still has a test's actors,
    would make the others fail as well."""
    report = yield
    if report.failed and "local_ray" in item.fixturenames:
        import ray

        from jobs.runtime import start_local

        if ray.is_initialized():
            ray.shutdown()
            start_local(num_cpus=CPUS)
    return report


MINI = """
population:
  synthetic: {archetypes: 2, base_users: 12, candidates: 6, targets: 3, history: 12, queries: 4}
prompt: {max_length: 48}
base:
  tiny: {hidden: 32, layers: 2, vocab: 400, steps: 60, batch: 16, lr: 1e-2}
  adapt: {steps: 4, batch: 8, rank: 4}
lora: {rank: 4}
select: {count: 4}
pool:
  train: {steps: 30, batch: 4, pack: 2, lr: 1e-2}
  gate: {steps: 6, batch: 4}
  sketch: 8
own: {steps: 30, batch: 4, pack: 2, lr: 1e-2}
evaluate: {resamples: 100, save_text: true}
ray: {fleet: actors, threads: 1}
"""
"""A whole flow in seconds; small, but trained enough that adapters change answers."""


@pytest.fixture(scope="session")
def mini_yaml(tmp_path_factory):
    """The path of a config of a whole flow in seconds; `experiment` is for the test to give."""
    path = tmp_path_factory.mktemp("config") / "mini.yaml"
    path.write_text(MINI)
    return path


@pytest.fixture(scope="session")
def mini(mini_yaml):
    """mini(folder, "key=value", …): the mini config in that folder."""
    from perpcs.config import load_config

    def mini(folder, *overrides):
        return load_config(mini_yaml, [f"experiment={folder}", *overrides])

    return mini


@pytest.fixture(scope="session")
def contents():
    """contents(folder): every file with what tells a rewritten one from one left alone."""

    def contents(folder):
        stats = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
        return {str(p.relative_to(folder)): (s.st_ino, s.st_mtime_ns, s.st_size) for p, s in stats.items()}

    return contents


@pytest.fixture(scope="session")
def same_results():
    """same_results(folder): results.json without what is measured and where it lies."""
    import json

    from perpcs.evaluation.results import TIMES

    def without_times(value):
        if isinstance(value, dict):
            return {k: without_times(v) for k, v in value.items() if k not in TIMES}
        return [without_times(v) for v in value] if isinstance(value, list) else value

    def same_results(folder):
        results = without_times(json.loads((folder / "results.json").read_text()))
        for key in ("name", "command"):
            del results["experiment"][key]
        return results

    return same_results


@pytest.fixture(scope="session")
def finished(mini, local_ray, tmp_path_factory):
    """The folder of a finished run; tests read it and change copies."""
    from jobs import pipeline

    folder = tmp_path_factory.mktemp("flow") / "run"
    pipeline.main(mini(folder))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished, tmp_path / "copy", copy_function=shutil.copy2)
    return tmp_path / "copy"
