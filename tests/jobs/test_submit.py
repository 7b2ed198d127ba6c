"""`ray job submit` against a real cluster with token authentication: environment, exit codes, stop and go on, metrics."""

import json
import re
import secrets
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from benchmarks.head import head_node, submission
from storage.pool import Pool
from storage.trials import TrialTable

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="pc-"))
    # By default metrics are collected every ten seconds, in which this training may be over.
    # A stopped job is killed after three seconds, in which it may not have unwound on a busy machine.
    with head_node(folder, RAY_metrics_report_interval_ms="500", RAY_JOB_STOP_WAIT_TIME_S="60") as head:
        yield head
    shutil.rmtree(folder, ignore_errors=True)


def submit(cluster, *arguments, wait=True):
    return cluster.ray(*submission("-m", *arguments, wait=wait))


def test_a_client_without_the_token_is_turned_away(cluster):
    refused = cluster.ray("job", "list", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert refused.returncode != 0 and "token" in (refused.stdout + refused.stderr).lower()


def test_a_mistake_fails_the_job_with_its_status_and_one_line(cluster, mini_yaml, tmp_path):
    failed = submit(cluster, "jobs.pipeline", str(mini_yaml), f"experiment={tmp_path / 'x'}", "lora.rnak=3")
    assert failed.returncode != 0
    log = failed.stdout + failed.stderr
    job = re.search(r"raysubmit_\w+", log).group()
    found = cluster.get(f"/api/jobs/{job}")
    assert found["status"] == "FAILED" and "failed with exit code 2" in found["message"], found
    assert "lora.rnak: no such key; did you mean lora.rank?" in found["message"]
    assert "Traceback" not in found["message"]
    assert not (tmp_path / "x").exists()


def test_stopped_and_submitted_again_it_goes_on(cluster, mini_yaml, tmp_path):
    folder = tmp_path / "run"
    arguments = [
        "jobs.pipeline",
        str(mini_yaml),
        f"experiment={folder}",
        "population.synthetic.candidates=14",
        "select.count=12",
        "pool.train.pack=1",
        "pool.train.steps=100",
    ]
    first = submit(cluster, *arguments, wait=False)
    assert first.returncode == 0, first.stdout + first.stderr
    job = re.search(r"raysubmit_\w+", first.stdout).group()
    metrics = wait_for_packs(folder, cluster)
    assert cluster.ray("job", "stop", job).returncode == 0
    assert cluster.get(f"/api/jobs/{job}")["status"] == "STOPPED"
    assert not (folder / "driver.json").exists(), "it ended by itself, not by a kill"
    before = users_of_packs(folder)
    again = submit(cluster, *arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "base model: already done" in again.stdout and "OPPU" in again.stdout
    users = users_of_packs(folder)
    assert users[: len(before)] == before and len(set(users)) == len(users) == 12
    assert "perpcs_jobs_users_total{" in metrics and 'stage="sharers"' in metrics
    sweep_over(folder, cluster, mini_yaml, tmp_path)


def sweep_over(folder, cluster, mini_yaml, tmp_path):
    """A submitted sweep over a finished experiment takes over what it trained."""
    config, swept = tmp_path / "sweep.yaml", tmp_path / "swept"
    made = f"""
defaults: {mini_yaml}
population: {{synthetic: {{candidates: 14}}}}
select: {{count: 12}}
pool: {{train: {{steps: 100}}}}
sweep:
  reuse: [{folder}]
  space: {{method: [gradient], assembly.top_k: [1, 2]}}
"""
    config.write_text(made)
    done = submit(cluster, "jobs.sweep", str(config), f"experiment={swept}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(TrialTable(str(swept / "trials.lance")).rows()) == 2 and (swept / "recommended.yaml").exists()
    (experiment,) = (swept / "experiments").iterdir()
    attempts = [Pool.open(str(run / "pool")).view().attempts.tolist() for run in (folder, experiment)]
    assert attempts[0] == attempts[1], "nothing was trained"


def wait_for_packs(folder, cluster):
    """Until a sharer is committed and the metrics port says so; the page."""
    until = time.monotonic() + 250
    page = ""
    while time.monotonic() < until:
        time.sleep(0.2)
        if users_of_packs(folder):
            page = (
                urllib.request.urlopen(f"http://127.0.0.1:{cluster.metrics}/metrics", timeout=10)
                .read()
                .decode()
            )
            if "perpcs_jobs_users_total" in page:
                return page
    raise AssertionError("no sharer was committed")


def users_of_packs(folder):
    log = folder / "events.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [user for e in events if e["kind"] == "pack" and e["stage"] == "sharers" for user in e["users"]]
