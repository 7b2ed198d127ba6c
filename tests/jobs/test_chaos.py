"""The chaos program in short: see benchmarks/chaos.py; the long form is `make chaos`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--users", "24", "--steps", "100", "--workers-killed", "2", "--coordinators-killed", "1",
         "--nodes-killed", "1", "--drivers-killed", "1",
         "--every", "0.2", "--limit", "240"]  # fmt: skip


@pytest.mark.slow
def test_after_kills_of_everything_the_store_is_as_if_nothing_had_happened(tmp_path):
    command = [sys.executable, "-m", "benchmarks.chaos", *SHORT, "--folder", str(tmp_path)]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "platform")))
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=os.environ | {"PYTHONPATH": path}
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    found = json.loads(run.stdout[run.stdout.index("{") :])
    assert found["problems"] == []
    assert found["kills"] == {"worker": 2, "coordinator": 1, "node": 1, "driver": 1}
    assert found["events"]["began"] >= 2 and found["events"]["lease"] >= 8
