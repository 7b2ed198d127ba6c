"""The audit's numbers against slow loops, and its attacks on adapters whose memory is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perpcs.audit.attack import ATTACKS, attack_sharer, losses, references, scores
from perpcs.audit.findings import Audit, LeakRow, from_text, to_text
from perpcs.audit.membership import Scores, auc, measure, tpr_at
from perpcs.audit.split import split_history, without_held_out
from perpcs.config.schema import LoraConfig, TrainConfig
from perpcs.errors import DataError
from perpcs.lora.bank import AdapterBank
from perpcs.records import Item, User
from perpcs.train.sharers import train_own

RNG = np.random.default_rng(0)


def test_auc_is_the_share_of_pairs_in_the_right_order():
    members, others = RNG.integers(0, 9, 30).astype(float), RNG.integers(0, 7, 41).astype(float)
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    assert auc(members, others) == pytest.approx(np.mean(pairs))
    assert auc(members, members) == 0.5


def test_true_positives_are_counted_at_no_more_false_ones_than_allowed():
    others = np.arange(200.0)
    assert (
        tpr_at(np.array([197.0, 197.5, 198.5, 300.0]), others) == 0.75
    )  # two of 200 may lie above: 198 and 199
    for rate in (0.01, 0.1, 0.5):
        members, others = RNG.normal(1, 1, 300), RNG.normal(0, 1, 150)
        best = max((members > t).mean() for t in [*members, *others] if (others > t).mean() <= rate)
        assert tpr_at(members, others, rate) == pytest.approx(best)


def test_an_attack_that_knows_nothing_is_inside_its_interval_and_one_that_knows_is_not():
    blind = [Scores(RNG.normal(size=30), RNG.normal(size=30)) for _ in range(24)]
    found = measure(blind, resamples=300)
    assert found.auc_low < 0.5 < found.auc_high
    seeing = [Scores(s.members + 2, s.others) for s in blind]
    leak = measure(seeing, resamples=300)
    assert leak.auc_low > 0.85 and leak.tpr > 0.2
    assert measure(blind[:1], resamples=10).auc_low is None


def test_the_calibrated_score_takes_out_what_is_easy_for_everybody():
    own, others = np.array([0.1, 1.0]), np.array([[0.1, 2.0], [0.2, 2.2], [0.0, 1.8]])
    assert scores(own, others, "loss").argmax() == 0
    assert scores(own, others, "calibrated").argmax() == 1


def test_references_leave_the_attacked_sharer_out_and_do_not_depend_on_the_order():
    ids = [f"s{i}" for i in range(10)]
    picked = references(ids, "s3", count=4, seed=0)
    assert len(set(picked)) == 4 and 3 not in picked
    assert picked == references(ids, "s3", count=4, seed=0)
    assert len(references(ids, "s3", count=99, seed=0)) == 9


def user(count=20):
    return User("u", tuple(Item(f"i{i}", (("text", str(i)),)) for i in range(count)))


def test_the_history_is_cut_in_two_without_loss_and_the_cut_is_the_users_own():
    kept, held = split_history(user(), 0.3, seed=1)
    assert len(held) == 6 and sorted((*kept, *held), key=lambda i: int(i.id[1:])) == list(user().history)
    assert without_held_out(user(), 0.3, seed=1).history == kept
    assert without_held_out(user(), 0.0, seed=1) is not None and split_history(user(), 0.0, seed=1)[1] == ()
    assert split_history(user(1), 0.9, seed=1) == (user(1).history, ())
    assert split_history(user(), 0.3, seed=2)[1] != held


@pytest.fixture(scope="module")
def trained(banked, session_user):
    """(bank, items by sharer): four sharers, each over-trained on 6 of 12 items."""
    users = [session_user(f"s{i}", items=12, seed=i) for i in range(4)]
    seen = [replace(u, examples=u.examples[:6]) for u in users]
    made = train_own(banked, seen, LoraConfig(rank=4), TrainConfig(steps=60, batch=6, lr=2e-2), seed=0)
    adapters = [
        {name: (torch.from_numpy(p.a), torch.from_numpy(p.b)) for name, p in one.pieces.items()}
        for one in made
    ]
    return AdapterBank.holding(banked.projections, adapters, scale=2.0), [
        (u.examples[:6], u.examples[6:]) for u in users
    ]


def test_losses_are_those_of_each_item_alone(banked, trained):
    bank, items = trained
    members = items[0][0]
    together = losses(banked, bank, members, [0, 2], batch=5)
    for row, slot in zip(together, (0, 2), strict=True):
        alone = [losses(banked, bank, [item], [slot])[0, 0] for item in members]
        assert row == pytest.approx(alone, abs=1e-5)


def test_what_an_adapter_remembers_is_found_and_another_adapter_tells_nothing(banked, trained):
    bank, items = trained
    found = {attack: [] for attack in ATTACKS}
    control = {attack: [] for attack in ATTACKS}
    for i in range(4):
        others = [j for j in range(4) if j != i]
        for attack, s in attack_sharer(banked, bank, items[i], slot=i, against=others).items():
            found[attack].append(s)
        for attack, s in attack_sharer(banked, bank, items[i], slot=others[0], against=others[1:]).items():
            control[attack].append(s)
    for attack in ATTACKS:
        assert measure(found[attack], resamples=50).auc > 0.9
        assert 0.2 < measure(control[attack], resamples=50).auc < 0.8


def test_the_file_is_read_strictly():
    row = LeakRow("adapter", "loss", 8.0, 0.7, 0.6, 0.8, 0.1, None, None)
    audit = Audit("demo", 0, 4, 24, 24, "held out", 3, 1, "abc", {"lora.rank": "4"}, (row,))
    assert from_text(to_text(audit), where="audit.json") == audit
    with pytest.raises(DataError, match=r"audit\.json: cannot be read as JSON"):
        from_text("{", where="audit.json")
    with pytest.raises(DataError, match="version is 9"):
        from_text('{"version": 9}', where="audit.json")
