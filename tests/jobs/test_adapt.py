"""Task adaptation by several workers of Ray Train, one of which is killed."""

import os
import signal
import threading
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from jobs import adapt, ingest
from jobs.journal import StoreJournal

pytestmark = pytest.mark.slow
TOGETHER = ("base.adapt.workers=2", "base.adapt.checkpoint_s=0", "base.adapt.steps=200")


def weights(folder):
    return load_file(next((folder / "base").glob("*.safetensors")))


def command(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return ""


class Killer(threading.Thread):
    """SIGKILL to one of the training workers as soon as a state was kept."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.kept, self.early = folder, None, False

    def run(self):
        while self.kept is None:
            self.kept = next((self.folder / "adapting").glob("*.safetensors"), None)
            time.sleep(0.01)
        worker = next(p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in command(p))
        self.early = not (self.folder / "base").exists()
        os.kill(worker.pid, signal.SIGKILL)


def test_the_end_takes_away_the_states_of_earlier_settings_too(tmp_path):
    for key in ("before", "after"):
        journal = StoreJournal(str(tmp_path), key, every_s=0.0)
        journal.step(lambda: {"steps": torch.tensor(3)})
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 and int(journal.load()["steps"]) == 3
    journal.end()
    assert not list(tmp_path.iterdir())


def test_two_workers_of_which_one_dies_make_the_base_that_one_makes(mini, local_ray, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder, overrides in ((alone, TOGETHER[1:]), (together, TOGETHER)):
        cfg = mini(folder, *overrides)
        ingest.STAGE(cfg)
        if folder == together:
            killer = Killer(folder)
            killer.start()
        adapt.STAGE(cfg)
    killer.join(10)
    assert killer.kept and killer.early, "a state was kept, and a worker killed between it and the end"
    assert not list((together / "adapting").glob("*")), "nobody needs the state any more"
    one, two, raw = (
        weights(alone),
        weights(together),
        load_file(next((alone / "base-raw").glob("*.safetensors"))),
    )
    moved = max(float((one[name] - raw[name]).abs().max()) for name in one)
    assert moved > 1e-3
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)
    # What makes the training and not its result may be changed at any time.
    assert adapt.STAGE.finished(mini(together, "base.adapt.steps=200"))
