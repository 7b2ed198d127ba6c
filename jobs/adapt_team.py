"""Task adaptation by several workers: Ray Train's data-parallel trainer, each worker with its part of every batch.

A worker that dies takes the group with it, which Ray Train starts again; it goes on from the state in the experiment,
as a killed and resubmitted job does. The base before adaptation is read from the experiment by every worker.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.adapt import adapt_and_save
from jobs.crew_train import set_train_env
from jobs.experiment import Info
from jobs.loading import base_folder
from jobs.runtime import threads_of
from perpcs.config import ExperimentConfig
from perpcs.errors import PerpcsError
from perpcs.model.base import load_causal_lm
from perpcs.train.team import Team
from storage.layout import Paths

log = logging.getLogger(__name__)


def adapt_together(cfg: ExperimentConfig, paths: Paths) -> Info:
    """Adapt the raw base of the experiment with `base.adapt.workers` workers, with Ray connected; what the first
    one reports."""
    set_train_env()
    log.info("task adaptation by %d workers", cfg.base.adapt.workers)
    # Ray Train wants a folder of its own; nothing of ours goes there.
    folder = tempfile.mkdtemp(prefix="perpcs-train-")
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"cfg": cfg, "paths": paths},
        torch_config=TorchConfig(backend="nccl" if cfg.ray.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cfg.base.adapt.workers,
            use_gpu=cfg.ray.gpus > 0,
            resources_per_worker={"CPU": cfg.ray.cpus} | ({"GPU": cfg.ray.gpus} if cfg.ray.gpus else {}),
        ),
        run_config=RunConfig(
            name="adapt", storage_path=folder, failure_config=FailureConfig(max_failures=cfg.ray.retries)
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _reason(error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return dict(result.metrics or {})


def _loop(config: dict[str, Any]) -> None:
    import torch

    cfg, paths = config["cfg"], config["paths"]
    torch.set_num_threads(threads_of(cfg.ray))
    context = ray.train.get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    model, tokenizer = load_causal_lm(str(base_folder(paths.raw_base)), dtype=cfg.base.dtype)
    # All ranks must report, and the first one's report is the result.
    ray.train.report(adapt_and_save(cfg, paths, model, tokenizer, team=team))


def _reason(error: Exception) -> Exception:
    """The workers' own error, where it was written for users."""
    failures = getattr(error, "worker_failures", {}).values()
    return next((cause for cause in failures if isinstance(cause, PerpcsError)), error)
