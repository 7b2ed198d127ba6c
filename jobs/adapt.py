"""Stage 2: make the frozen base. The tiny one is trained from scratch; then one LoRA on base users' data is merged."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.cli import stage_main
from jobs.experiment import Info, Stage
from jobs.journal import StoreJournal
from jobs.preflight import check_base
from jobs.runtime import connect, require_room, run_remote, runs_here
from perpcs.config import ExperimentConfig, as_flat_dict, digest
from perpcs.errors import DataError
from perpcs.model.adapt import adapt, unbanked
from perpcs.model.base import FINGERPRINT_FILE, banked, fingerprint, load_causal_lm, save_base
from perpcs.model.tiny import new_llama, pretrain, train_tokenizer
from perpcs.population.prompts import PLAIN, Context, Encoded, Prompter
from perpcs.population.tasks import Task, get_task
from perpcs.records import User
from perpcs.seeds import rng
from perpcs.train.team import ALONE, Team
from storage.folders import written_folder
from storage.layout import Paths
from storage.population import read_split, read_task

log = logging.getLogger(__name__)


def run(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Make the base in one worker; where several adapt it together, in one up to there."""
    if not cfg.base.adapt.enabled or cfg.base.adapt.workers == 1 or runs_here(cfg.ray):
        return run_remote(make_base, cfg, paths, cfg=cfg.ray)
    from jobs.adapt_team import adapt_together  # brings in Ray Train

    with connect(cfg.ray):
        require_room(cfg.ray, key="base.adapt.workers", workers=cfg.base.adapt.workers)
        return run_remote(save_raw, cfg, paths, cfg=cfg.ray) | adapt_together(cfg, paths)


def make_base(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Train or load, adapt, merge, save; returns the fingerprint and losses."""
    model, tokenizer, info = make_raw(cfg, paths)
    return info | adapt_and_save(cfg, paths, model, tokenizer)


def make_raw(cfg: ExperimentConfig, paths: Paths) -> tuple[Any, Any, Info]:
    """Train or load the base as it is before adaptation, and save it."""
    users = read_split(paths.population, "base")
    task = get_task(read_task(paths.population))
    model, tokenizer, info = _tiny(cfg, task, users) if cfg.base.model == "tiny" else _foreign(cfg)
    _save(model, tokenizer, paths.raw_base)
    return model, tokenizer, info


def save_raw(cfg: ExperimentConfig, paths: Paths) -> Info:
    """`make_raw` for its files; no Ray object holds a model."""
    return make_raw(cfg, paths)[2]


def adapt_and_save(
    cfg: ExperimentConfig, paths: Paths, model: Any, tokenizer: Any, *, team: Team = ALONE
) -> Info:
    """Adapt, merge and save; of several processes the first saves. Goes on where a killed adaptation was."""
    raw = fingerprint(model, tokenizer)
    base = banked(model, tokenizer, mark="", device=cfg.base.device, targets=cfg.lora.targets)
    info: Info = {"parameters": sum(p.numel() for p in model.parameters())}
    if cfg.base.adapt.enabled:
        users, task = read_split(paths.population, "base"), get_task(read_task(paths.population))
        examples = adaptation_examples(Prompter(task, tokenizer, cfg.prompt), users, cfg)
        journal = StoreJournal(
            paths.adapting, _journal_key(cfg, raw, examples), team=team, every_s=cfg.base.adapt.checkpoint_s
        )
        losses = adapt(base.model, examples, cfg.base.adapt, seed=cfg.seed, team=team, journal=journal)
        info |= {"adaptation_examples": len(examples), "adaptation_loss": round(losses.final(0), 4)}
    if team.rank:
        return info
    mark = _save(unbanked(base.model), tokenizer, paths.base)
    if cfg.base.adapt.enabled:
        journal.end()
    return {**info, "fingerprint": mark, "mark": mark}


def _journal_key(cfg: ExperimentConfig, raw: str, examples: Sequence[Encoded]) -> str:
    """What a state must have been made with to go on from it: the base, the settings, the data."""
    how = {
        name: value
        for name, value in as_flat_dict(cfg.base.adapt).items()
        if name not in ("workers", "checkpoint_s")
    }
    data = hashlib.sha256(repr(examples).encode()).hexdigest()
    return digest({"raw": raw, "how": how, "targets": list(cfg.lora.targets), "seed": cfg.seed, "data": data})


def _save(model: Any, tokenizer: Any, uri: str) -> str:
    with written_folder(uri, named_by=FINGERPRINT_FILE) as folder:
        return save_base(model, tokenizer, folder)


def _foreign(cfg: ExperimentConfig) -> tuple[Any, Any, Info]:
    model, tokenizer = load_causal_lm(cfg.base.model, dtype=cfg.base.dtype)
    return model, tokenizer, {}


def _tiny(cfg: ExperimentConfig, task: Task, users: Sequence[User]) -> tuple[Any, Any, Info]:
    tokenizer = train_tokenizer(_texts(cfg, task, users), vocab=cfg.base.tiny.vocab)
    prompter = Prompter(task, tokenizer, cfg.prompt)
    model = new_llama(cfg.base.tiny, tokenizer, max_length=cfg.prompt.max_length, seed=cfg.seed)
    steps, losses = cfg.base.tiny.steps, []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % max(1, steps // 4) == 0:
            log.info(
                "tiny base: step %d of %d, loss %.3f", step + 1, steps, sum(losses[-20:]) / len(losses[-20:])
            )

    pretrain(model, adaptation_examples(prompter, users, cfg), cfg.base.tiny, seed=cfg.seed, on_step=on_step)
    return model, tokenizer, {"tiny_loss": round(sum(losses[-20:]) / len(losses[-20:]), 4)}


def _texts(cfg: ExperimentConfig, task: Task, users: Sequence[User]) -> list[str]:
    """What the tokenizer learns from: whole prompts as they will be, so that marker and wording become few tokens."""
    return [
        f"{task.prompt(variable, cfg.prompt.instruction, past=True)}\n{task.history_line(item)} {output}"
        for user in users
        for item in user.history
        for variable, output in [task.example(item)]
    ]


def adaptation_examples(prompter: Prompter, users: Sequence[User], cfg: ExperimentConfig) -> list[Encoded]:
    """Base users' past items and questions, a fraction of them shown with retrieved history or a profile."""
    examples = [e for user in users for e in _user_examples(prompter, user, cfg) if e is not None and e.label]
    if not examples:
        raise DataError("the base users have no history item with an output; the base cannot be adapted")
    return examples


def _user_examples(prompter: Prompter, user: User, cfg: ExperimentConfig) -> Iterator[Encoded | None]:
    """What is shown with an item is drawn per (user, item), whoever else is there."""
    shown = (Context(retrieve=cfg.evaluate.retrieve), Context(profile=True))
    draws = rng(cfg.seed, "adapt-context", user.id).random((len(user.history) + len(user.queries), 2))
    contexts = [shown[int(2 * which)] if p < cfg.base.adapt.retrieved else PLAIN for p, which in draws]
    for index in range(len(user.history)):
        yield prompter.item(user, index, context=contexts[index])
    for query, context in zip(user.queries, contexts[len(user.history) :], strict=True):
        yield prompter.query(user, query, context=context)


STAGE = Stage(
    "adapt", "base model", run, needs=("ingest",), settings=("seed", "prompt", "base", "lora.targets", "evaluate.retrieve"),
    makes="base", beside=("raw_base",), costly=True, check=check_base,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(stage_main(STAGE, description=__doc__))
