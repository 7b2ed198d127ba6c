"""What a stage refuses before it, or any stage before it, has written anything."""

from __future__ import annotations

from jobs.experiment import is_finished, stage_info
from jobs.runtime import run_remote
from perpcs.config import ExperimentConfig
from perpcs.errors import ConfigError, DataError, MismatchError
from perpcs.evaluation.methods import get_methods
from perpcs.lora.bank import check_rank
from perpcs.lora.inject import BankedModel
from perpcs.model.base import FINGERPRINT_FILE, check_files, skeleton
from perpcs.model.encoder import check_folder
from perpcs.population.tasks import get_task
from storage.folders import read_mark
from storage.layout import Paths
from storage.pool import Pool, pool_exists


def check_task(cfg: ExperimentConfig, paths: Paths) -> None:
    """ConfigError for a task that there is not."""
    try:
        get_task(cfg.population.task)
    except DataError as error:
        raise ConfigError(f"population.{error}") from error


def check_methods(cfg: ExperimentConfig, paths: Paths) -> None:
    """ConfigError for a method that there is not, or labels that the task does not have, then as `check_match`."""
    get_methods(cfg.evaluate.methods)
    if cfg.evaluate.decoding == "constrained" and not get_task(cfg.population.task).labels:
        raise ConfigError(
            f"evaluate.decoding: constrained needs a task whose outputs are labels, {cfg.population.task} has none; "
            "use greedy"
        )
    check_match(cfg, paths)


def check_base(cfg: ExperimentConfig, paths: Paths) -> None:
    """ModelError or ConfigError for a base that cannot be used; looked at by a worker, which may see other folders."""
    run_remote(inspect_base, cfg, cfg=cfg.ray)


def check_encoder(cfg: ExperimentConfig, paths: Paths) -> None:
    """ModelError for a `select.encoder` that is no model folder."""
    if cfg.select.encoder != "base":
        run_remote(check_folder, cfg.select.encoder, cfg=cfg.ray)


def inspect_base(cfg: ExperimentConfig) -> None:
    """Check targets, layers and rank on the base's shape alone, and the weights of a local folder for NaN."""
    if cfg.base.model != "tiny":
        check_files(cfg.base.model)
    model = skeleton(cfg.base, max_length=cfg.prompt.max_length)
    banked = BankedModel(model, cfg.lora.targets, pad_id=0, layers=cfg.lora.layers)
    check_rank(banked.projections, cfg.lora.rank)


def check_match(cfg: ExperimentConfig, paths: Paths) -> None:
    """MismatchError when the base in the experiment's folder is not the one that was adapted, or that the pools need."""
    found = read_mark(paths.base, named_by=FINGERPRINT_FILE)
    if found is None or not is_finished(paths, "adapt"):
        return
    for pool in (paths.pool, paths.own):
        made_with = Pool.open(pool).spec.fingerprint if pool_exists(pool) else found
        if made_with != found:
            raise MismatchError(
                f"{pool}: its pieces were made with base {made_with}, {paths.base} has {found}; "
                "put the old base back, or train again in a new folder (experiment=…)"
            )
    adapted = stage_info(paths, "adapt", wanted_by="the check")["fingerprint"]
    if adapted != found:
        raise MismatchError(
            f"{paths.base}: is base {found}, the experiment adapted {adapted}; put the old one back"
        )
