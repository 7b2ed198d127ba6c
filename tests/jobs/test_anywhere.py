"""A whole experiment on an object store: it runs, is recognised, goes on after a kill, and needs no local folder."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import pipeline
from jobs.events import read_events
from storage.files import exists, read_json, read_text, remove, walk
from storage.layout import Paths
from storage.pool import Pool

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def remote(s3_environment, monkeypatch, tmp_path):
    """The URI of an experiment that does not exist yet; copies of bases go to a folder of the test."""
    for name, value in (s3_environment | {"PERPCS_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    return f"s3://pools/{tmp_path.name}"


def run(config, uri, *settings, kill_at=None):
    """The pipeline as a program of its own, which inherits the store's address; killed at a log line, or to its end."""
    command = [sys.executable, "-m", "jobs.pipeline", str(config), f"experiment={uri}", *settings]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=dict(os.environ),
    )  # fmt: skip
    if kill_at is None:
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err
    for line in process.stderr:
        if kill_at in line:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.communicate(timeout=60)
    return process.returncode, "", ""


def test_killed_on_an_object_store_it_goes_on_and_ends_as_in_a_folder(
    finished, mini, mini_yaml, remote, tmp_path, monkeypatch
):
    assert run(mini_yaml, remote, kill_at="sharers: worker 0: 2 users")[0] == -signal.SIGKILL
    paths = Paths.of(remote)
    before = dict(zip(Pool.open(paths.pool).view().ids, Pool.open(paths.pool).view().attempts, strict=True))
    assert before and exists(paths.driver), "the killed driver's sign stays"
    status, out, err = run(mini_yaml, remote, "ray.address=none")
    assert status == 0, err
    assert "OPPU" in out and f"{remote}/report.html" in out and "base model: already done" in err
    after = dict(zip(Pool.open(paths.pool).view().ids, Pool.open(paths.pool).view().attempts, strict=True))
    assert before.items() <= after.items() and len(after) == 4

    def rows(results):
        return [(row["method"], row["metric"], row["value"]) for row in results["rows"]]

    assert rows(read_json(paths.results)) == rows(json.loads((finished / "results.json").read_text()))
    assert read_text(paths.predictions) == (finished / "predictions.jsonl").read_text()
    assert "</html>" in read_text(paths.report) and not exists(paths.driver)
    kinds = [event["kind"] for event in read_events(paths) if event["stage"] == "sharers"]
    # The killed driver's workers may commit what they had in hand before they notice; then nothing was left to train.
    trained = "sharers: worker" in err
    assert (kinds.count("began"), kinds.count("ended")) == ((2, 1) if trained else (1, 0))

    objects = walk(remote)
    monkeypatch.setattr(pipeline, "connect", lambda cfg: pytest.fail("nothing is to do"))
    pipeline.main(mini(remote, "ray.address=none"))
    assert walk(remote) == objects

    remove(f"{paths.base}/fingerprint.txt")
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
