"""The fleet on a real local Ray, with workers that write files instead of training."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from jobs.fleet import RemoteDesk, run_fleet
from jobs.fleet_types import FleetReport, PackReport
from perpcs.config.schema import RayConfig
from perpcs.errors import MismatchError, PerpcsError

SECONDS_PER_USER = 0.03


class FileWorker:
    """Commits a user by creating a file, exactly once; logs every training."""

    def __init__(self, folder, poison=()):
        self.folder, self.poison = Path(folder), poison

    def run(self, users):
        for user in users:
            if user in self.poison:
                raise ValueError(f"{user} is poison")
        for user in users:
            time.sleep(SECONDS_PER_USER)
            with (self.folder / "trained.log").open("a") as log:
                log.write(f"{user}\n")
            (self.folder / "users" / user).touch(exist_ok=False)
        return PackReport(tuple(users), seconds=SECONDS_PER_USER * len(users))


class Scene:
    def __init__(self, folder, count):
        (folder / "users").mkdir()
        self.folder = folder
        self.users = [f"u{i:03d}" for i in range(count)]
        self.events = []

    def run(self, make=None, *, fleet="actors", pack=4, on_event=None, **ray):
        folder, users = str(self.folder), self.users

        def todo():
            done = {path.name for path in Path(folder, "users").iterdir()}
            return [user for user in users if user not in done]

        return run_fleet(
            make or (lambda: FileWorker(folder)),
            todo=todo,
            pack=pack,
            cfg=RayConfig(fleet=fleet, **({"workers": 2} | ray)),
            on_event=on_event or self.events.append,
        )

    @property
    def trained(self):
        return Counter((self.folder / "trained.log").read_text().split())

    def kinds(self):
        """Without the driver's own events, the leases, and what only a busy machine has."""
        return Counter(e.kind for e in self.events if e.kind not in ("began", "lease", "waiting", "ended"))


@pytest.fixture
def scene(tmp_path, local_ray):
    return lambda count: Scene(tmp_path, count)


def test_nothing_to_do_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.fleet.connect", lambda cfg: pytest.fail("Ray was wanted"))
    assert Scene(tmp_path, 0).run() == FleetReport()


def test_everybody_is_trained_once_and_a_second_run_has_nothing_to_do(scene):
    scene = scene(10)
    report = scene.run()
    assert report.done == tuple(scene.users) and report.failed == {} and report.workers == 2
    assert set(scene.trained.values()) == {1}
    assert scene.kinds() == {"joined": 2, "pack": 3}
    last = [event for event in scene.events if event.kind == "pack"][-1]
    assert last.done == last.total == 10
    assert [scene.events[0].kind, scene.events[-1].kind] == ["began", "ended"]
    assert scene.run() == FleetReport()


def test_fewer_users_than_workers(scene):
    scene = scene(1)
    report = scene.run(pack=16)
    assert report.done == ("u000",) and report.workers == 1


@pytest.mark.parametrize("fleet", ["actors", "train"])
def test_a_killed_worker_loses_nothing_and_nothing_is_done_twice(scene, fleet):
    scene = scene(40)
    killed = []

    def on_event(event):
        scene.events.append(event)
        if event.kind == "pack" and not killed:
            killed.append(pids[event.worker])
            os.kill(killed[0], signal.SIGKILL)
        if event.kind == "joined":
            pids[event.worker] = int(event.text.split("process ")[1].rstrip(")"))

    pids = {}
    report = scene.run(fleet=fleet, on_event=on_event)
    assert report.done == tuple(scene.users) and report.failed == {}
    assert len(list((scene.folder / "users").iterdir())) == 40
    # A user whose training was cut off before its commit is trained again; touch(exist_ok=False) would have
    # failed for one that was committed twice.
    assert sum(count - 1 for count in scene.trained.values()) <= 1
    assert scene.kinds()["joined"] >= 3
    other = [event for event in scene.events if event.kind == "pack" and pids[event.worker] != killed[0]]
    assert other, "the other worker went on"


def test_a_poison_user_is_retried_alone_and_reported(scene):
    scene = scene(12)
    folder = str(scene.folder)
    report = scene.run(lambda: FileWorker(folder, poison=("u005",)), pack=12, workers=1, retries=1)
    assert report.failed == {"u005": "ValueError: u005 is poison"}
    assert set(report.done) == set(scene.users) - {"u005"}


def test_a_users_mistake_comes_back_as_itself(scene):
    def make():
        raise MismatchError("the pool was made with another base")

    with pytest.raises(MismatchError, match="another base"):
        scene(3).run(make, workers=1)


def test_a_killed_coordinator_starts_again_from_the_store(scene, local_ray, monkeypatch):
    scene = scene(24)
    actors = []
    start = __import__("jobs.fleet", fromlist=["_"])._start_coordinator
    monkeypatch.setattr(
        "jobs.fleet._start_coordinator", lambda *args: actors.append(start(*args)) or actors[-1]
    )

    def on_event(event):
        scene.events.append(event)
        if event.kind == "pack" and scene.kinds()["pack"] == 1:
            local_ray.kill(actors[0], no_restart=False)

    report = scene.run(on_event=on_event)
    assert report.done == tuple(scene.users)
    assert set(scene.trained.values()) == {1}
    assert scene.kinds()["restarted"] == 1


def test_a_worker_that_claims_too_much_is_found_out(scene):
    class Liar:
        def run(self, users):
            return PackReport(tuple(users))

    report = scene(2).run(Liar, workers=1)
    assert report.done == () and "the store does not hold it" in report.failed["u000"]


def test_a_coordinator_that_never_answers_ends_the_driver_with_what_to_do(local_ray):
    class Silent:
        def news(self, cursor):
            time.sleep(600)

    actor = local_ray.remote(num_cpus=0)(Silent).remote()
    with pytest.raises(PerpcsError, match=r"has not answered for 1 s: .* run the same command again"):
        RemoteDesk(actor, patience_s=1.0).news(("", 0))
    local_ray.kill(actor)
