"""`ray job submit` against a real cluster with token authentication: environment, exit codes, stop and go on, metrics."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Cluster:
    """A head node in a process group of its own; `ray stop` would end other people's clusters too."""

    def __init__(self, folder):
        self.metrics_port, dashboard = free_port(), free_port()
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_")) and k != "PYTHONPATH"
        }
        self.env = kept | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_metrics_report_interval_ms": "500",  # by default ten seconds, in which this training may be over
            "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        command = [
            RAY, "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1", f"--port={free_port()}",
            f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}", f"--temp-dir={folder}",
            f"--metrics-export-port={self.metrics_port}", f"--dashboard-agent-listen-port={free_port()}",
            f"--dashboard-agent-grpc-port={free_port()}", "--object-store-memory=100000000",
        ]  # fmt: skip
        started = {k: v for k, v in self.env.items() if k != "RAY_ADDRESS"}
        self.log = (folder.parent / "head.log").open("w")
        self.head = subprocess.Popen(
            command, env=started, stdout=self.log, stderr=self.log, start_new_session=True, cwd=folder.parent
        )
        for _ in range(60):
            if self.ray("job", "submit", "--", "true").returncode == 0:  # the job agent comes last
                return
            assert self.head.poll() is None, (folder.parent / "head.log").read_text()
            time.sleep(0.5)
        raise AssertionError("the head node does not answer")

    def ray(self, *arguments, **env):
        return subprocess.run(
            [RAY, *arguments], env=self.env | env, capture_output=True, text=True, timeout=240, cwd=ROOT
        )

    def submit(self, *arguments, wait=True, runtime_env="configs/ray/job.yaml"):
        how = [] if wait else ["--no-wait"]
        return self.ray(
            "job", "submit", *how, "--working-dir", ".", "--runtime-env", runtime_env, "--", "python", "-m", *arguments
        )  # fmt: skip

    def close(self):
        os.killpg(self.head.pid, signal.SIGTERM)
        try:
            self.head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.head.pid, signal.SIGKILL)
        self.log.close()


@pytest.fixture(scope="module")
def cluster():
    import shutil
    import tempfile

    # Sockets lie under it, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="pc-"))
    (folder / "ray").mkdir()
    made = Cluster(folder / "ray")
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_client_without_the_token_is_turned_away(cluster):
    refused = cluster.ray("job", "list", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert refused.returncode != 0 and "token" in (refused.stdout + refused.stderr).lower()


def test_a_mistake_fails_the_job_with_its_status_and_one_line(cluster, mini_yaml, tmp_path):
    failed = cluster.submit("jobs.pipeline", str(mini_yaml), f"experiment={tmp_path / 'x'}", "lora.rnak=3")
    assert failed.returncode != 0
    log = failed.stdout + failed.stderr
    job = re.search(r"raysubmit_\w+", log).group()
    status = " ".join(re.sub(r"\x1b\[\d+m", "", cluster.ray("job", "status", job).stdout).split())
    assert f"Job '{job}' failed" in status and "failed with exit code 2" in status, status
    assert "lora.rnak: no such key; did you mean lora.rank?" in status and "Traceback" not in status
    assert not (tmp_path / "x").exists()


def test_stopped_and_submitted_again_it_goes_on(cluster, mini_yaml, tmp_path):
    folder = tmp_path / "run"
    arguments = [
        "jobs.pipeline",
        str(mini_yaml),
        f"experiment={folder}",
        "pool.train.pack=1",
        "pool.train.steps=300",
    ]
    first = cluster.submit(*arguments, wait=False)
    assert first.returncode == 0, first.stdout + first.stderr
    job = re.search(r"raysubmit_\w+", first.stdout).group()
    metrics = wait_for_packs(folder, cluster)
    assert cluster.ray("job", "stop", job).returncode == 0
    assert "was stopped" in cluster.ray("job", "status", job).stdout
    assert not (folder / "driver.json").exists(), "it ended by itself, not by a kill"
    before = users_of_packs(folder)
    again = cluster.submit(*arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "base model: already done" in again.stdout and "OPPU" in again.stdout
    users = users_of_packs(folder)
    assert users[: len(before)] == before and len(set(users)) == len(users) == 4
    assert "perpcs_jobs_users_total{" in metrics and 'stage="sharers"' in metrics


def wait_for_packs(folder, cluster):
    """Until a sharer is committed and the metrics port says so; the page."""
    until = time.monotonic() + 250
    page = ""
    while time.monotonic() < until:
        time.sleep(0.2)
        if users_of_packs(folder):
            page = (
                urllib.request.urlopen(f"http://127.0.0.1:{cluster.metrics_port}/metrics", timeout=10)
                .read()
                .decode()
            )
            if "perpcs_jobs_users_total" in page or len(users_of_packs(folder)) > 2:
                return page
    raise AssertionError("no sharer was committed")


def users_of_packs(folder):
    log = folder / "events.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [user for e in events if e["kind"] == "pack" and e["stage"] == "sharers" for user in e["users"]]
