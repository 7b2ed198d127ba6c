"""A run that is killed with all its processes, twice, goes on where it was and ends with the same results."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from jobs import pipeline
from storage.pool import Pool

ROOT = Path(__file__).resolve().parents[2]
LONGER = ("pool.train.steps=300", "pool.train.pack=1", "own.steps=300", "own.pack=1")
"""Single users, each long enough that a kill meets one at work."""


def run_and_kill(config, folder, *, at):
    """Start the pipeline as a program of its own; kill it and all it started when a log line has all of `at`."""
    command = [sys.executable, "-m", "jobs.pipeline", str(config), f"experiment={folder}", *LONGER]
    run = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True, env=dict(os.environ)
    )
    seen = []
    for line in run.stderr:
        seen.append(line)
        if all(part in line for part in at):
            break
    os.killpg(run.pid, signal.SIGKILL)
    run.stderr.close()
    assert run.wait(timeout=60) == -signal.SIGKILL, "".join(seen)


def packs(folder):
    """(stage, users) of every pack that the event log knows."""
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [(event["stage"], tuple(event["users"])) for event in events if event["kind"] == "pack"]


def attempts(folder, pool):
    view = Pool.open(str(folder / pool)).view()
    return dict(zip(view.ids, view.attempts.tolist(), strict=True))


@pytest.mark.slow
def test_killed_while_sharers_and_then_own_adapters_train(
    mini, mini_yaml, local_ray, tmp_path, contents, same_results
):
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    run_and_kill(mini_yaml, killed, at=("sharers:", "1 of 4 done"))
    first = attempts(killed, "pool")
    assert 1 <= len(first) < 4, "the kill met the sharers' training"
    run_and_kill(mini_yaml, killed, at=("own adapters:", "1 of 3 done"))
    sharers, own = attempts(killed, "pool"), attempts(killed, "own")
    assert first.items() <= sharers.items() and len(sharers) == 4
    assert 1 <= len(own) < 3, "the kill met the own adapters' training"

    pipeline.main(mini(killed, *LONGER))
    assert attempts(killed, "pool") == sharers, "what was committed is not trained again"
    assert own.items() <= attempts(killed, "own").items()
    trained = Counter((stage, user) for stage, users in packs(killed) for user in users)
    assert max(trained.values()) == 1

    pipeline.main(mini(undisturbed, *LONGER, "ray.address=none"))
    assert same_results(killed) == same_results(undisturbed)
    assert (killed / "predictions.jsonl").read_text() == (undisturbed / "predictions.jsonl").read_text()
