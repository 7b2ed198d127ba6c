"""One training by several processes, and one that goes on where it was killed, against the plain one."""

import threading
from dataclasses import dataclass, replace

import pytest
import torch

from perpcs.config.schema import TrainConfig
from perpcs.lora.bank import AdapterBank, initialise
from perpcs.lora.inject import BankedModel
from perpcs.train.pack import train_adapters
from perpcs.train.team import ALONE, Team

CONFIG = TrainConfig(steps=24, batch=5, lr=3e-3, warmup=4, pack=2)
TARGETS = ("q_proj", "v_proj")


@pytest.fixture
def make_model(make_llama):
    return lambda: BankedModel(make_llama(), TARGETS, pad_id=0)


@pytest.fixture
def users(make_user):
    return [make_user("u", items=9), make_user("v", items=4)]


def train(model, users, config=CONFIG, team=ALONE, journal=None):
    bank = AdapterBank(model.projections, len(users), rank=4, scale=1.0)
    initialise(bank, [u.user_id for u in users], seed=0, shared=False)
    return bank, train_adapters(model, bank, users, config, seed=0, team=team, journal=journal)


class Hall:
    """Where the members of a team in threads meet."""

    def __init__(self, size):
        self.barrier, self.brought = threading.Barrier(size), {}


@dataclass(frozen=True)
class Member(Team):
    """As a process of its own would be, with tensors handed over in memory."""

    hall: Hall = None

    def add_up(self, *tensors):
        for tensor in tensors:
            self.hall.brought[self.rank] = tensor.clone()
            self.hall.barrier.wait(60)
            tensor.copy_(sum(self.hall.brought[rank] for rank in range(self.size)))
            self.hall.barrier.wait(60)


@pytest.mark.parametrize("size", [2, 4])
def test_a_team_makes_the_same_adapters(make_model, users, size):
    bank, losses = train(make_model(), users)
    hall, found = Hall(size), {}
    members = [Member(rank, size, hall) for rank in range(size)]

    def run(member, model):
        found[member.rank] = train(model, users, team=member)

    # Models are made here: they draw their weights from torch's one generator.
    threads = [threading.Thread(target=run, args=(member, make_model())) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other, other_losses in found.values():
        torch.testing.assert_close(other_losses.losses, losses.losses, rtol=0, atol=1e-5)
        torch.testing.assert_close(other.parameters.flat, bank.parameters.flat, rtol=0, atol=1e-4)
    assert torch.equal(found[0][0].parameters.flat, found[size - 1][0].parameters.flat)


def test_more_processes_than_visits_leave_some_without_any():
    assert [list(Team(rank, 3).part(2)) for rank in range(3)] == [[0], [1], []]


class Killed(Exception):
    pass


class Paper:
    """Keeps the state after step `keep` and dies after step `die`."""

    def __init__(self, keep, die):
        self.keep, self.die, self.kept, self.steps = keep, die, None, 0

    def load(self):
        return self.kept

    def step(self, state):
        self.steps += 1
        if self.steps == self.keep:
            self.kept = {name: value.clone() for name, value in state().items()}
        if self.steps == self.die:
            raise Killed


def test_killed_it_goes_on_to_the_same_bits(make_model, users):
    # One user ends early, so that what is replayed depends on the losses.
    config = replace(CONFIG, stop_loss=4.2)
    bank, losses = train(make_model(), users, config)
    paper = Paper(keep=13, die=17)
    with pytest.raises(Killed):
        train(make_model(), users, config, journal=paper)
    again, again_losses = train(make_model(), users, config, journal=paper)
    assert torch.equal(again.parameters.flat, bank.parameters.flat)
    assert torch.equal(again_losses.losses.nan_to_num(), losses.losses.nan_to_num())
    assert again_losses.steps == losses.steps
    assert paper.steps == 17 + losses.losses.shape[0] - 13, "no step of before the kill is made again"
