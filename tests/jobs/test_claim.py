"""One driver per experiment: the second is refused, a dead one's place is taken, no clock is believed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import claim as module
from jobs.claim import claim, driver_of, started
from perpcs.errors import StoreError
from storage.files import write_json
from storage.layout import Paths

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from jobs.claim import claim
from storage.layout import Paths
with claim(Paths.of(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def paths(tmp_path):
    return Paths.of(str(tmp_path / "run"))


def never(seconds):
    raise AssertionError(f"waited {seconds} s")


def test_held_for_the_block_and_by_what_is_within(paths):
    with claim(paths, sleep=never), claim(paths, sleep=never):
        assert driver_of(paths)["process"] == os.getpid()
    assert driver_of(paths) is None
    with pytest.raises(ZeroDivisionError), claim(paths):
        1 / 0  # noqa: B018
    assert not Path(paths.root).exists(), "nothing was made, nothing stays"
    with claim(paths):
        Path(paths.root, "kept").touch()
    assert [path.name for path in Path(paths.root).iterdir()] == ["kept"]


def test_a_living_process_is_respected_and_a_killed_ones_place_is_taken_at_once(paths, monkeypatch):
    monkeypatch.setattr(module, "SETTLE_S", 0.01)
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, paths.root], stdout=subprocess.PIPE, text=True, env=env
    )
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(StoreError, match=rf"another driver works .* process {other.pid}\); wait for it"),
        claim(paths),
    ):
        pytest.fail("both work")
    assert driver_of(paths)["process"] == other.pid
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with claim(paths):
        assert driver_of(paths)["process"] == os.getpid()


def test_a_process_number_that_was_given_anew_is_not_the_driver(paths):
    sign = {"id": "old", **module._identity(), "at": 0.0, "beat": 3}
    write_json(paths.driver, sign | {"started": "1"})
    assert started(sign["process"]) != "1"
    with claim(paths, sleep=lambda _: None):
        assert driver_of(paths)["id"] != "old"


@pytest.mark.parametrize("at", [0.0, 4e9])
def test_another_machines_driver_lives_when_its_sign_is_renewed_whatever_its_clock_says(paths, at):
    sign = {"id": "x", "host": "elsewhere", "boot": "b", "process": 7, "started": "1", "at": at, "beat": 3}
    write_json(paths.driver, sign)
    with (
        pytest.raises(StoreError, match="elsewhere, process 7"),
        claim(paths, sleep=lambda _: write_json(paths.driver, sign | {"beat": 4})),
    ):
        pytest.fail("both work")
    with claim(paths, sleep=lambda _: None):
        assert driver_of(paths)["host"] != "elsewhere"


def test_of_two_that_take_a_dead_drivers_place_the_later_writer_has_it(paths):
    dead = {"id": "x", **module._identity(), "started": "1", "at": 0.0, "beat": 3}
    write_json(paths.driver, dead)
    with (
        pytest.raises(StoreError, match="another driver"),
        claim(paths, sleep=lambda _: write_json(paths.driver, dead | {"id": "rival"})),
    ):
        pytest.fail("both work")
    assert driver_of(paths)["id"] == "rival"
