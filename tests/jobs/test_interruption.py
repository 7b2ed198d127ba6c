"""A stage that is told to stop ends quickly, with an honest status, and the same command finishes the work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

STAGE = """
import functools, os, pathlib, signal, sys, time
from jobs.cli import stage_main
from jobs.fleet import run_fleet
from jobs.fleet_types import PackReport
from jobs.terminal import fleet_progress

USERS = [f"u{i:02d}" for i in range(20)]

class Worker:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
    def run(self, users):
        for user in users:
            time.sleep(0.2)
            (self.folder / user).touch(exist_ok=False)
        return PackReport(tuple(users))

def todo(folder):
    done = set(os.listdir(folder))
    return [user for user in USERS if user not in done]

def stage(cfg):
    with fleet_progress("users", len(USERS)) as on_event:
        make, left = functools.partial(Worker, cfg.experiment), functools.partial(todo, cfg.experiment)
        run_fleet(make, todo=left, pack=2, cfg=cfg.ray, on_event=on_event)

if __name__ == "__main__":
    # A background process of a shell without job control ignores SIGINT, and hands that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(stage_main(stage, description="A stage."))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_stops_and_goes_on(tmp_path, sent, status):
    (tmp_path / "done").mkdir()
    (tmp_path / "x.yaml").write_text(f"experiment: {tmp_path / 'done'}\nray: {{fleet: actors, cpus: 0.5}}\n")
    (tmp_path / "stage.py").write_text(STAGE)
    command = [sys.executable, str(tmp_path / "stage.py"), str(tmp_path / "x.yaml")]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
    stage = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    while len(list((tmp_path / "done").iterdir())) < 3 and stage.poll() is None:
        time.sleep(0.1)
    stage.send_signal(sent)
    err = stage.communicate(timeout=30)[1]
    assert stage.returncode == status, err
    assert err.splitlines()[-1].endswith("; run the same command again to go on")
    assert len(list((tmp_path / "done").iterdir())) < 20
    subprocess.run([*command, "ray.address=none"], env=env, check=True, capture_output=True, timeout=120)
    assert len(list((tmp_path / "done").iterdir())) == 20
