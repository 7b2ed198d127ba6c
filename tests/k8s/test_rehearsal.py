"""The rehearsal's short form: workers from zero, a token asked for, a head lost and back while calls go on."""

import json
import subprocess
import sys

import pytest

from k8s.check.render import ROOT
from k8s.rehearsal.__main__ import SHORT, obstacle


@pytest.mark.slow
def test_a_cluster_with_a_lost_head(tmp_path):
    if reason := obstacle():
        pytest.skip(reason)
    command = [sys.executable, "-m", "k8s.rehearsal", *SHORT, "--report", str(tmp_path / "seen.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["first-worker"]["a job without the token: HTTP status"] == 401
    assert seen["head-lost"]["errors"] == 0 and seen["head-lost"]["calls"] > 0
