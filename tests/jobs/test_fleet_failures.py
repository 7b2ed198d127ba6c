"""A fleet over a real pool, whose workers die at chosen points of a commit, find the disk full, or are too slow."""

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jobs.fleet import run_fleet
from jobs.fleet_types import PackReport
from jobs.todo import missing
from perpcs.config.schema import RayConfig
from perpcs.records import Piece, PoolSpec, Projection, SharerAdapter
from storage import pool as pool_module
from storage import sharers as sharers_module
from storage.pool import Pool
from storage.verify import verify

SPEC = PoolSpec(
    "base",
    2,
    2.0,
    tuple(
        Projection(layer, kind, 6, 6, f"model.layers.{layer}.{kind}")
        for layer in range(2)
        for kind in ("self_attn.q_proj", "self_attn.v_proj")
    ),
    sketch=2,
    gates=True,
    history_dim=3,
)
USERS = tuple(f"u{i:02d}" for i in range(16))


def adapter(user):
    """The same numbers whoever trains the user, as with real training."""
    rng = np.random.default_rng([*user.encode()])

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    pieces = {p.name: Piece(draw(2, 6), draw(6, 2), draw(6), draw(4), 1.0) for p in SPEC.projections}
    return SharerAdapter(user, 2, 2.0, pieces, draw(3), 5, 5, 0.5, 0)


class PoolWorker:
    """Commits packs; `accidents` happen once each, wherever they are met first."""

    def __init__(self, folder, accidents=()):
        self.folder, self.accidents, self.appends = Path(folder), accidents, 0
        self.append = pool_module.append
        pool_module.append = sharers_module.append = self._append

    def run(self, users):
        if self._now("mid-step"):
            os.kill(os.getpid(), signal.SIGKILL)
        uri = str(self.folder / "pool")
        if self._now("frozen"):  # until others have done its work
            while set(users) & set(missing(uri, lambda: USERS)):
                time.sleep(0.1)
        self.appends = 0
        Pool.open_or_create(uri, spec=SPEC, dtype="float32").commit([adapter(user) for user in users])
        if self._now("after the commit, before the report"):
            os.kill(os.getpid(), signal.SIGKILL)
        return PackReport(tuple(users), seconds=0.1)

    def _append(self, uri, rows):
        self.appends += 1
        if "sharers" in uri and self._now("between pieces and commit"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.appends == 2 and self._now("mid-write"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.appends == 2 and (self._now("disk full") or self._now("disk full still")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.append(uri, rows)

    def _now(self, accident):
        mark = self.folder / accident
        if accident not in self.accidents or mark.exists():
            return False
        mark.touch()
        return True


@pytest.fixture
def train(tmp_path, local_ray):
    """train(accident…): all users, with these accidents; returns (report, events by kind, pool)."""

    def train(*accidents, fleet="actors", workers=2):
        folder, events = str(tmp_path), []

        def todo():
            return missing(f"{folder}/pool", lambda: USERS)

        cfg = RayConfig(fleet=fleet, workers=workers, retries=1)
        report = run_fleet(
            lambda: PoolWorker(folder, accidents), todo=todo, pack=4, cfg=cfg, on_event=events.append
        )
        return report, Counter(event.kind for event in events), Pool.open(f"{folder}/pool")

    return train


def assert_whole(pool):
    """Everybody is there once, with the numbers of an undisturbed run, and nothing in the pool is damaged."""
    view = pool.view()
    assert view.ids == USERS
    for user in USERS:
        for name, piece in view.adapter(user).pieces.items():
            assert piece.a.tobytes() == adapter(user).pieces[name].a.tobytes()
    assert not verify(pool).problems


def test_workers_killed_at_every_point_of_a_pack(train):
    points = ("mid-step", "mid-write", "between pieces and commit", "after the commit, before the report")
    report, kinds, pool = train(*points)
    assert set(report.done) == set(USERS) and report.failed == {}
    assert_whole(pool)
    assert kinds["lost"] == 4 and kinds["joined"] >= 6, kinds
    # Users whose commit was in when their worker died are not trained again.
    assert kinds["retry"] == 3


def test_a_full_disk_is_nobodys_fault_and_waited_for(train):
    report, kinds, pool = train("disk full", "disk full still", workers=1)
    assert set(report.done) == set(USERS) and report.failed == {}
    assert kinds["ill"] == 2 and kinds["retry"] == 0
    assert_whole(pool)


def test_a_worker_that_was_thought_dead_and_comes_back_changes_nothing(train, monkeypatch):
    """As behind a network partition: its lease went to others, and both commit the same users."""
    import dataclasses

    from jobs import fleet

    plan = fleet.Plan
    monkeypatch.setattr(
        fleet, "Plan", lambda **limits: dataclasses.replace(plan(**limits), lost_s=5.0, beat_s=60.0)
    )
    report, kinds, pool = train("frozen")
    assert set(report.done) == set(USERS) and report.failed == {}
    assert kinds["lost"] == 1 and kinds["late"] == 1
    assert_whole(pool)
