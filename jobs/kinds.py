"""OPPU with other kinds of PEFT as a stage: one file per target user and kind, in `own_kinds/`.

Finished means written: run again after any interruption, only what is missing is trained.
"""

from __future__ import annotations

import hashlib
import logging
import time
from functools import partial

from jobs.experiment import Info, Stage
from jobs.loading import base_folder, open_base, open_prompter
from jobs.preflight import check_match
from jobs.runtime import run_remote
from perpcs.config import ExperimentConfig
from perpcs.model.base import Base, load_causal_lm, pick_device
from perpcs.train.data import UserData
from perpcs.train.kinds import Kind, KindModel, State
from storage.files import exists, join, read_bytes, write_bytes
from storage.layout import Paths
from storage.population import read_split

log = logging.getLogger(__name__)


def open_kind(cfg: ExperimentConfig, paths: Paths, base: Base, kind: Kind) -> KindModel:
    """The adapted base once more, without banked layers: the library puts its own in."""
    model, _ = load_causal_lm(str(base_folder(paths.base)), dtype=cfg.base.dtype)
    model = model.to(pick_device(cfg.base.device)).requires_grad_(False)
    return KindModel(model, kind, cfg.own_kinds, pad_id=base.model.pad_id, seed=cfg.seed)


def state_path(paths: Paths, kind: Kind, user_id: str) -> str:
    """Where a user's parameters are; user ids may hold anything, so they are hashed."""
    return join(
        getattr(paths, f"own_{kind}"), f"{hashlib.sha256(user_id.encode()).hexdigest()[:32]}.safetensors"
    )


def read_state(paths: Paths, kind: Kind, user_id: str) -> State:
    """A user's stored parameters."""
    from safetensors.torch import load

    return load(read_bytes(state_path(paths, kind, user_id)))


def kind_stage(kind: Kind, title: str) -> Stage:
    """The stage that trains one kind for every target."""
    return Stage(
        f"train_{kind}", title, partial(_run, kind), needs=("adapt",), settings=("seed", "own_kinds"),
        makes=f"own_{kind}", costly=True, grows=True, check=check_match,
    )  # fmt: skip


def _run(kind: Kind, cfg: ExperimentConfig, paths: Paths) -> Info:
    return run_remote(train_missing_states, cfg, paths, kind, cfg=cfg.ray)


def train_missing_states(cfg: ExperimentConfig, paths: Paths, kind: Kind) -> Info:
    """Train the targets that have no file yet, one after the other."""
    from safetensors.torch import save

    base = open_base(cfg, paths)
    prompter, model = open_prompter(cfg, paths, base), open_kind(cfg, paths, base, kind)
    users = read_split(paths.population, "targets")
    started, made = time.monotonic(), 0
    for number, user in enumerate(users, 1):
        path = state_path(paths, kind, user.id)
        if exists(path):
            continue
        state, loss = model.train(UserData(user.id, tuple(prompter.history(user))))
        write_bytes(path, save({n: v.cpu().contiguous() for n, v in state.items()}))
        made += 1
        log.info("%s: %d of %d targets, loss %.3f", kind, number, len(users), loss)
    return {
        "users": len(users),
        "parameters": sum(v.numel() for v in model.state().values()),
        "seconds_per_user": round((time.monotonic() - started) / max(1, made), 4),
    }
