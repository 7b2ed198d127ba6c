"""Measure what a pool gives away: can somebody who holds it tell whether an item was in a sharer's history?

python -m jobs.audit EXPERIMENT [--items N] [--references N] [--pieces N] [--ratios RHO …]

Attacks whole adapters, single pieces, and parts of the pieces. Writes audit.json into the experiment and draws its
report anew. Items that were not trained on: held out (pool.holdout above 0), or made afresh for synthetic users.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jobs.cli import Parser, guarded
from jobs.experiment import is_finished, read_marker
from jobs.loading import open_base, open_pieces, open_prompter
from jobs.report import write_page_of
from jobs.runtime import run_remote
from perpcs.audit.attack import ATTACKS, Attack, attack_sharer, references
from perpcs.audit.findings import Audit, LeakRow, to_text
from perpcs.audit.membership import Scores, measure
from perpcs.audit.split import split_history
from perpcs.config import ExperimentConfig, load_config
from perpcs.errors import ConfigError, DataError
from perpcs.lora.bank import Adapter, AdapterBank
from perpcs.population.prompts import Encoded, Prompter
from perpcs.population.synthetic import fresh_items
from perpcs.records import User
from storage.files import write_text
from storage.layout import Paths
from storage.masks import sharing_mask
from storage.population import read_users

log = logging.getLogger(__name__)

RawText = argparse.RawDescriptionHelpFormatter


@dataclass(frozen=True)
class Settings:
    """How much is attacked; see the command's --help."""

    items: int
    references: int
    pieces: int
    ratios: tuple[float, ...]


Items = tuple[list[Encoded], list[Encoded]]
"""(members, others) of one sharer."""


class Auditor:
    """The pool of one experiment and its sharers' items, members and not."""

    def __init__(self, cfg: ExperimentConfig, paths: Paths, *, items: int) -> None:
        self.cfg, self.base = cfg, open_base(cfg, paths)
        self.pieces = open_pieces(paths, self.base)
        self.names = [p.name for p in self.pieces.spec.projections]
        live = np.flatnonzero(self.pieces.live)
        self.ids = [self.pieces.ids[i] for i in live]
        users = read_users(paths.population, self.ids)
        self.items, self.source = items_of(cfg, open_prompter(cfg, paths, self.base), users, count=items)
        found = self.pieces.fetch(dict.fromkeys(self.names, live))
        self.adapters: list[Adapter] = [
            {name: (_tensor(a[i]), _tensor(b[i])) for name, (a, b) in found.items()} for i in range(len(live))
        ]

    def rows(self, what: str, kept: np.ndarray, *, count: int, control: bool = False) -> list[LeakRow]:
        """Both attacks where only the pieces `kept` [n, P] are known; control: with another sharer's pieces."""
        scale = self.pieces.spec.alpha / self.pieces.spec.rank
        shown = [
            {name: self.adapters[i][name] for j, name in enumerate(self.names) if kept[i, j]}
            for i in range(len(self.ids))
        ]
        model = self.base.model
        bank = AdapterBank.holding(model.projections, shown, scale=scale, device=model.device)
        found: dict[Attack, list[Scores]] = {attack: [] for attack in ATTACKS}
        for i, sharer in enumerate(self.ids):
            against = references(self.ids, sharer, count=count, seed=self.cfg.seed)
            slot = against.pop() if control else i
            made = attack_sharer(self.base.model, bank, self.items[i], slot=slot, against=against)
            for attack, scores in made.items():
                found[attack].append(scores)
        pieces = round(float(kept.sum(1).mean()), 3)
        return [_row(what, attack, pieces, scores) for attack, scores in found.items()]


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def _row(what: str, attack: Attack, pieces: float, scores: Sequence[Scores]) -> LeakRow:
    leak = measure(scores)
    values = {k: None if v is None else round(v, 6) for k, v in vars(leak).items()}
    log.info(
        "%s, %s attack: AUC %.3f, %.3f of members at 1 %% false alarms", what, attack, leak.auc, leak.tpr
    )
    return LeakRow(shared=what, attack=attack, pieces=pieces, **values)  # type: ignore[arg-type]


def items_of(
    cfg: ExperimentConfig, prompter: Prompter, users: Sequence[User], *, count: int
) -> tuple[list[Items], str]:
    """Per sharer equally many members and others, at most `count` of each; and where the others come from.

    Raises ConfigError when nothing is held out and nothing can be made.
    """
    halves = [split_history(user, cfg.pool.holdout, seed=cfg.seed) for user in users]
    source = "held out"
    if not cfg.pool.holdout:
        if cfg.population.source != "synthetic":
            raise ConfigError(
                "pool.holdout=0: an audit needs items of the sharers that were not trained on; run the experiment in a "
                "new folder with pool.holdout=0.3"
            )
        made = fresh_items(
            users, cfg.population.synthetic, seed=cfg.seed, task=cfg.population.task, count=count
        )
        halves = [(kept, made[user.id]) for user, (kept, _) in zip(users, halves, strict=True)]
        source = "made afresh"
    pairs = []
    for user, parts in zip(users, halves, strict=True):
        members, others = (prompter.history(User(user.id, part)) for part in parts)
        size = min(len(members), len(others), count)
        if not size:
            raise DataError(f"user {user.id}: has no item that was held out; raise pool.holdout")
        pairs.append((members[:size], others[:size]))
    return pairs, source


def audit(cfg: ExperimentConfig, paths: Paths, settings: Settings) -> str:
    """The text of audit.json."""
    auditor = Auditor(cfg, paths, items=settings.items)
    n, p = len(auditor.ids), len(auditor.names)
    if n < 3:
        raise DataError(f"{paths.pool}: has {n} sharers; an audit needs at least 3 to measure against")
    count = min(settings.references, n - 1)
    everything = np.ones((n, p), bool)
    rows = auditor.rows("adapter", everything, count=count)
    rows += auditor.rows("control", everything, count=count, control=True)
    for place in np.unique(np.linspace(0, p - 1, min(settings.pieces, p)).astype(int)).tolist():
        rows += auditor.rows(
            f"piece {auditor.names[place]}", everything & (np.arange(p) == place), count=count
        )
    for ratio in settings.ratios:
        mask = sharing_mask(auditor.ids, auditor.names, ratio=ratio, seed=cfg.seed)
        rows += auditor.rows(f"ratio {ratio:g}", mask, count=count)
    return to_text(
        Audit(
            experiment=cfg.experiment, seed=cfg.seed, sharers=n,
            members=sum(len(members) for members, _ in auditor.items),
            others=sum(len(others) for _, others in auditor.items),
            source=auditor.source, references=count, pool_version=auditor.pieces.version,
            fingerprint=auditor.base.fingerprint, rows=tuple(rows),
            settings={"pool.train.steps": str(cfg.pool.train.steps), "pool.train.lr": str(cfg.pool.train.lr),
                      "lora.rank": str(cfg.lora.rank), "pool.holdout": str(cfg.pool.holdout)},
        )
    )  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Audit one experiment."""
    found = _parser().parse_args(argv)
    settings = Settings(found.items, found.references, found.pieces, tuple(found.ratios))
    config = Path(found.experiment) / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{found.experiment}: has no config.yaml; name the folder of a finished experiment")
    cfg = load_config(config, [f"experiment={found.experiment}"])
    paths = Paths.of(cfg.experiment)
    read_marker(paths, "train_sharers", wanted_by="audit")
    write_text(paths.audit, run_remote(audit, cfg, paths, settings, cfg=cfg.ray))
    log.info("audit   %s", paths.audit)
    if is_finished(paths, "evaluate"):
        write_page_of(paths)


class _Parser(Parser):
    wanted = "name an experiment folder, e.g. {} runs/quickstart"


def _parser() -> Parser:
    parser = _Parser(prog="python -m jobs.audit", description=__doc__, formatter_class=RawText)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="folder of a finished experiment")
    add = parser.add_argument
    add("--items", type=_whole(1), default=30, help="members, and others, per sharer at most (default: 30)")
    add("--references", type=_whole(2), default=8, help="other sharers to measure against (default: 8)")
    add(
        "--pieces",
        type=_whole(0),
        default=4,
        help="single pieces to attack, evenly over the layers (default: 4)",
    )
    add("--ratios", type=_ratio, nargs="*", default=[0.1, 0.3, 0.5],
        help="sharing ratios (default: 0.1 0.3 0.5)")  # fmt: skip
    return parser


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ValueError
        return int(text)

    read.__name__ = f"whole number from {least} on,"
    return read


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


_ratio.__name__ = "ratio above 0, at most 1,"

if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
