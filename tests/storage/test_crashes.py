"""Writers that die and writers that race: nothing half visible, nothing lost, nothing twice."""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from storage.files import exists
from storage.pool import Pool
from storage.sharers import sharers_uri
from storage.upkeep import compact, drop_old_files, table_uris
from storage.verify import verify
from storage.withdraw import erase, withdraw

WRITER = str(Path(__file__).with_name("writer.py"))
STEPS = 8
"""Writes of a first commit of three tables: sharers table, then (create, append) per table, then the sharers
row.
"""


def start(uri, mode, argument, ids):
    command = [sys.executable, WRITER, uri, mode, str(argument), *ids]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("step", range(STEPS))
def test_a_writer_killed_before_any_of_its_writes_leaves_nothing_visible(
    tmp_path, spec, adapter, tools, step
):
    uri, ids = str(tmp_path / "pool"), ["amy", "bob"]
    writer = start(uri, "step", step, ids)
    writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    assert not exists(sharers_uri(uri)) or Pool.open(uri).committed() == frozenset()
    Pool.open_or_create(uri, spec=spec).commit([adapter(user_id) for user_id in ids])
    view = Pool.open(uri).view()
    assert view.ids == ("amy", "bob")
    for user_id in ids:
        tools.same(view.adapter(user_id), adapter(user_id))


def test_writers_killed_at_random_times_lose_nothing_and_show_nothing_half(tmp_path, spec, adapter, tools):
    uri, ids, rng = str(tmp_path / "pool"), [f"u{i}" for i in range(60)], random.Random(0)
    pool, reported = Pool.create(uri, spec=spec), set()
    for _ in range(4):
        writer = start(uri, "each", 0, ids)
        deadline = time.monotonic() + 60
        target = len(pool.committed()) + rng.randrange(2, 12)
        while len(pool.committed()) < target and time.monotonic() < deadline:
            time.sleep(rng.random() / 100)
        writer.send_signal(signal.SIGKILL)
        reported.update(writer.communicate()[0].split())
        view = pool.view()
        assert reported <= set(view.ids)
        for user_id in rng.sample(view.ids, 2):
            tools.same(view.adapter(user_id), adapter(user_id))
    for user_id in ids:
        pool.commit([adapter(user_id)])
    assert pool.view().ids == tuple(sorted(ids))


def test_compaction_clean_up_and_erasure_beside_writers_and_readers(tmp_path, spec, adapter, tools):
    pool = Pool.create(str(tmp_path / "pool"), spec=spec)
    pool.commit([adapter("aaa")])
    writers = [start(pool.uri, "each", 0, [f"w{n}-{i}" for i in range(40)]) for n in range(2)]
    before, rounds = pool.view(), 0
    while any(writer.poll() is None for writer in writers):
        compact(pool)
        for uri in table_uris(pool):
            drop_old_files(uri, grace_s=0)
        pool.commit([adapter(f"gone-{rounds}")])
        withdraw(pool, f"gone-{rounds}")
        assert erase(pool).found == ()
        tools.same(before.adapter("aaa"), adapter("aaa"))
        view = pool.view()
        tools.same(view.adapter(view.ids[-1]), adapter(view.ids[-1]))
        rounds += 1
    assert [writer.wait() for writer in writers] == [0, 0]
    assert rounds > 2
    assert len(pool.committed()) == 81
    assert verify(Pool.open(pool.uri)).problems == []


@pytest.mark.parametrize("same_content", [True, False])
def test_concurrent_writers_lose_nothing_and_one_of_each_id_wins(tmp_path, tools, spec, same_content):
    uri, ids = str(tmp_path / "pool"), [f"u{i}" for i in range(12)]
    writers = [start(uri, "each", 0 if same_content else i, [*ids, f"own{i}"]) for i in range(3)]
    claimed = Counter()
    for writer in writers:
        claimed.update(writer.communicate(timeout=120)[0].split())
        assert writer.returncode == 0
    view = Pool.open(uri).view()
    assert set(view.ids) == {*ids, "own0", "own1", "own2"} == set(claimed)
    assert set(claimed.values()) == {1}  # exactly one writer was told that its commit counts
    for user_id in view.ids:
        winner = view.adapter(user_id)
        candidates = [tools.adapter(user_id, spec, seed) for seed in range(3)]
        matching = [c for c in candidates if c.loss == winner.loss]
        tools.same(winner, matching[0])


def test_a_full_disk_is_one_clear_line_and_changes_nothing(tmp_path, spec, adapter):
    uri = str(tmp_path / "pool")
    pool = Pool.create(uri, spec=spec)
    pool.commit([adapter("amy")])
    for limit in (0, 2000):
        said, _ = start(uri, "full", limit, [f"u{i}" for i in range(40)]).communicate(timeout=60)
        assert said.count("\n") == 1
        assert ".lance: appending failed: " in said
    assert Pool.open(uri).view().ids == ("amy",)
    assert pool.commit([adapter("bob")]).added == ("bob",)


def test_a_disk_that_is_full_and_has_room_again(tmp_path):
    small = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs -o size=500k tmpfs "$0" && exec "$@"',
        str(tmp_path),
    ]
    if not shutil.which("unshare") or subprocess.run([*small, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a small disk of its own needs the right to mount one")
    fill = subprocess.run(
        [*small, sys.executable, WRITER, str(tmp_path / "pool"), "fill", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    *refused, last = fill.stdout.splitlines()
    assert [line.split(": ")[1] for line in refused] == ["appending failed"] * 2 + [
        "creating the table failed"
    ]
    assert all(
        ".lance: " in line and "No space left on device" in line and ".rs:" not in line for line in refused
    )
    assert last == "True [] ()"


def test_a_read_only_store_can_be_read_and_refuses_writers_with_one_clear_line(spec, adapter):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        Path(folder).chmod(0o755)
        pool = Pool.create(f"{folder}/pool", spec=spec)
        for user_id in ("amy", "ann"):
            pool.commit([adapter(user_id)])
        paths = sorted(Path(folder).rglob("*"))
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = {path: path.read_bytes() for path in paths if path.is_file()}
        said, _ = start(pool.uri, "powerless", 0, ["bob"]).communicate(timeout=60)
        assert {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()} == before
        for path in [Path(folder), *paths]:
            path.chmod(0o755)
    read, *refused = said.splitlines()
    assert read == "('amy', 'ann') True"
    assert len(refused) == 4
    for line, words in zip(refused, ("appending", "appending", "compaction", "compaction"), strict=True):
        assert f".lance: {words} failed: " in line and "ermission denied" in line


def test_one_view_everywhere(tmp_path, spec, adapter):
    """Two readers that saw different moments agree on any version."""
    pool = Pool.create(str(tmp_path / "pool"), spec=spec)
    follower = Pool.open(pool.uri)
    for i in range(6):
        pool.commit([adapter(f"u{5 - i}")])
        if i % 2:
            follower.committed()
    for version in range(1, pool.view().version + 1):
        views = [p.view(version) for p in (pool, follower, Pool.open(pool.uri))]
        assert len({(v.ids, v.attempts.tobytes()) for v in views}) == 1
