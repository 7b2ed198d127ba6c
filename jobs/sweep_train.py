"""Makes a sweep's experiments ready: the pipeline's own stages, each output made once and shared by all experiments
whose settings for it are equal; sharers one by one, so that another selection trains only whom it adds.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs import train_sharers
from jobs.experiment import Stage, is_finished, read_marker
from jobs.sweep_plan import Trial
from jobs.todo import missing, selected
from perpcs.config import ExperimentConfig, digest
from perpcs.errors import MismatchError, StoreError
from storage.files import exists, join, local
from storage.layout import Paths
from storage.pool import Pool

log = logging.getLogger(__name__)


def is_ready(trial: Trial) -> bool:
    """Whether everything that the trial needs is trained, in its experiment's folder."""
    return all(stage.finished(trial.cfg) for stage in trial.stages)


def make_ready(cfg: ExperimentConfig, stages: Sequence[Stage], *, root: str, reuse: Sequence[str]) -> None:
    """Finish `stages` of one experiment of the sweep at `root`, taking over what another one, or one of `reuse`, has.

    Several processes may do so at once: what two of them need is made by one, and the other waits. Raises as stages do.
    """
    for stage in stages:
        if stage.finished(cfg):
            continue
        with alone(root, _claim(stage, cfg)):
            if not stage.finished(cfg) and not _taken(stage, cfg, donors(root, reuse)):
                stage.refuse(cfg)
                if stage is train_sharers.STAGE:
                    adopt_sharers(cfg, donors(root, reuse))
                stage.do(cfg)


def donors(root: str, reuse: Sequence[str]) -> list[Paths]:
    """Experiments that may have what is needed."""
    own = sorted(local(join(root, "experiments")).glob("*/"))
    return [Paths.of(str(folder)) for folder in (*own, *reuse)]


def state_of(trial: Trial) -> str:
    """What exactly the trial is evaluated over: other trained things give another state; '' while they are not there."""
    paths = Paths.of(trial.cfg.experiment)
    if not all(is_finished(paths, stage.name) for stage in trial.stages):
        return ""
    infos = {s.name: read_marker(paths, s.name, wanted_by="the sweep")["info"] for s in trial.stages}
    # The pool's own mark stays when its members change; the index names them.
    marks = {name: info["mark"] for name, info in infos.items() if "mark" in info and name != "train_sharers"}
    return digest(marks)


def adopt_sharers(cfg: ExperimentConfig, others: Sequence[Paths]) -> int:
    """Copy chosen sharers that another experiment trained with the same settings over the same base; how many."""
    count = 0
    for other in others:
        if _same_training(train_sharers.STAGE, cfg, other):
            with _skipped_if_of_another_release(other):
                count += _adopt(Paths.of(cfg.experiment), other)
    return count


def _adopt(paths: Paths, other: Paths) -> int:
    wanted = missing(paths.pool, lambda: selected(paths))
    if not wanted:
        return 0
    view = Pool.open(other.pool).view()
    there = {view.ids[i] for i in view.live.nonzero()[0]}
    ids = [user_id for user_id in wanted if user_id in there]
    if ids:
        pool = Pool.open_or_create(paths.pool, spec=view.spec, dtype=view.header.dtype)
        pool.commit(view.adapters(ids))
        log.info("sharers: %d of %d taken over from %s", len(ids), len(wanted), other.root)
    return len(ids)


def _same_training(stage: Stage, cfg: ExperimentConfig, other: Paths) -> bool:
    paths = Paths.of(cfg.experiment)
    if other.root == paths.root or not exists(other.pool) or not is_finished(other, "adapt"):
        return False
    return stage.alike(cfg, other) and _origin(other) == _origin(paths)


def _origin(paths: Paths) -> str:
    """The base and, by way of it, the population."""
    marker = read_marker(paths, "adapt", wanted_by="the sweep")
    return digest({"inputs": marker["inputs"], "mark": marker["info"].get("mark")})


def _taken(stage: Stage, cfg: ExperimentConfig, others: Sequence[Paths]) -> bool:
    root = Paths.of(cfg.experiment).root
    for other in others:
        with _skipped_if_of_another_release(other):
            if other.root != root and stage.take_over(cfg, other):
                log.info("%s: taken over from %s", stage.title, other.root)
                return True
    return False


@contextmanager
def _skipped_if_of_another_release(donor: Paths) -> Iterator[None]:
    """A donor is only asked for help: a pool that this release does not read is said, and costs training anew."""
    try:
        yield
    except MismatchError as error:
        log.warning("nothing taken over from %s: %s", donor.root, error)


def _claim(stage: Stage, cfg: ExperimentConfig) -> str:
    """What two experiments must not make at the same time."""
    inputs = stage.inputs(cfg)
    if stage is train_sharers.STAGE:  # another selection over the same base takes sharers over
        inputs = {key: value for key, value in inputs.items() if not key.startswith("stage ")}
        inputs["origin"] = _origin(Paths.of(cfg.experiment))
    return f"{stage.name}-{digest(inputs)}"


@contextmanager
def alone(root: str, name: str, *, wait: bool = True) -> Iterator[None]:
    """One process of this file system at a time; the lock falls with the process that holds it.

    Raises StoreError where another has it and `wait` is false.
    """
    path = Path(local(join(root, "locks", name)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise StoreError(
                f"{root}: another run works on this sweep; wait for it, stop it, or use another folder (experiment=…)"
            ) from error
        yield
