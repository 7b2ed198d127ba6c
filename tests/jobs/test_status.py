"""`python -m jobs.status`: what it says of a finished experiment, one at work, one that failed, and of nothing."""

import json
import re
import time

import pytest

from jobs import status
from jobs.events import EventLog
from jobs.fleet_types import FleetEvent
from jobs.metrics import COUNTERS, amounts
from storage.files import write_json
from storage.layout import Paths


def event(kind, text="", **details):
    at = details.pop("at", time.time())
    plain = {
        "stage": "sharers",
        "kind": kind,
        "text": text or kind,
        "worker": "",
        "users": [],
        "seconds": 0.0,
        "at": at,
    }
    return plain | details


def test_rate_and_workers():
    run = [
        event("joined", "worker 0 runs (a)", worker="0", at=100.0),
        event("joined", "worker 1 runs (b)", worker="1", at=100.0),
        event("pack", users=["a", "b"], seconds=4.0, at=110.0),
        event("lost", worker="1", at=111.0),
        event("pack", users=["c", "d"], seconds=4.0, at=114.0),
    ]
    assert status.rate_of(run) == pytest.approx(4 / 8)
    assert status.rate_of([]) == 0.0
    assert status.workers_of(run) == ("worker 0 runs (a)",)
    old = [event("pack", users=["x"] * 9, seconds=1.0, at=-1000.0), *run]
    assert status.rate_of(old) == pytest.approx(4 / 8), "what was long ago does not count"
    began = event("began")
    assert status.newest_run([began, *run, began, run[0]]) == [began, run[0]]


def test_a_finished_experiment(finished, capsys):
    assert status.main([str(finished)]) == 0
    text = capsys.readouterr().out
    assert "no driver at work" in text and "train_sharers   done, 4 of 4 users, 0 left" in text
    assert "own adapters: driver on" in text
    assert status.main([str(finished), "--json", "--events", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["stages"].values()) == {"done"} and len(found["events"]) == 2
    own = found["training"]["train_own"]
    assert own.pop("rate") > 0
    assert own == {"users": 3, "done": 3, "left": 0, "failed": {}, "eta_s": None, "workers": []}


def test_one_at_work_with_a_failed_user(copy, capsys):
    import shutil

    shutil.rmtree(copy / "pool")
    paths = Paths.of(str(copy))
    marker = json.loads((copy / "stages" / "train_sharers.json").read_text())
    write_json(paths.marker("train_sharers"), marker | {"finished": False})
    written = time.time()
    write_json(paths.driver, {"host": "far", "process": 3, "at": time.time() - 2, "id": "x", "beat": 1})
    who = json.loads((copy / "sharers.json").read_text())["sharers"][0]
    with EventLog(paths) as log:
        log.append(event("began"))
        log.append(event("joined", "worker 0 runs (far, process 4)", worker="0"))
        log.append(event("pack", users=["somebody"], seconds=2.0))
        log.append(event("failed", f"user {who} failed for good: DataError: no", users=[who]))
    found = status.status_of(paths)
    training = found.training["train_sharers"]
    assert (training.done, training.left, list(training.failed)) == (0, 3, [who])
    assert training.eta_s == pytest.approx(3 / training.rate, abs=1) and training.rate == pytest.approx(
        0.5, abs=0.1
    )
    assert status.main([str(copy)]) == 0
    text = capsys.readouterr().out
    (age,) = re.findall(r"driver on far, process 3; its last sign is (\d+) s old", text)
    assert 2 <= int(age) <= 2.5 + time.time() - written
    for part in ("begun, 0 of 4 users, 3 left, 1 failed",
                 "about 6 s to go with 1 workers", "worker 0 runs (far", "failed for good: DataError: no"):  # fmt: skip
        assert part in text


def test_nothing_there_and_a_missing_argument(tmp_path, capsys):
    assert status.main([str(tmp_path / "none")]) == 2
    assert "there is no experiment here; check the path" in capsys.readouterr().err
    assert status.main([]) == 2
    assert "name an experiment, e.g. python -m jobs.status runs/quickstart" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_metrics_count_what_events_say():
    pack = FleetEvent("pack", "", users=("a", "b"), tokens=7)
    assert amounts(pack) == dict.fromkeys(amounts(pack), 0) | {"users": 2, "tokens": 7}
    assert amounts(FleetEvent("lost", "", users=("a",)))["lost_workers"] == 1
    assert amounts(FleetEvent("retry", "", users=("a",)))["users"] == 0
    assert {f"perpcs_jobs_{name}" for name in amounts(pack)} == set(COUNTERS)
