"""A fleet's workers as a Ray Train worker group of independent replicas: a dead rank is replaced, alone.

Ray Train replaces single ranks of a backend that says it manages replica groups. Workers never call
`ray.train.report`, which is a barrier over all ranks; they talk to the coordinator instead.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train import BackendConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from jobs.fleet_types import PackWorker, Plan
from jobs.fleet_worker import Desk, work
from jobs.runtime import threads_of
from perpcs.config.schema import RayConfig

TRAIN_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead rank, and the end of all, is seen
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # an experiment's path may be relative
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


def set_train_env() -> None:
    """Tell Ray Train, which reads its environment when a trainer is made."""
    for name, value in TRAIN_ENV.items():
        os.environ.setdefault(name, value)


class _IndependentBackend(Backend):
    has_replica_groups = True


class _Independent(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _IndependentBackend


class TrainCrew:
    """See jobs.fleet.Crew. Ray Train's controller blocks, so a thread waits for it."""

    def __init__(
        self, desk: Desk, make_worker: Callable[[], PackWorker], *, plan: Plan, cfg: RayConfig
    ) -> None:
        set_train_env()
        # Ray Train wants a folder of its own; nothing of ours goes there.
        self._folder = tempfile.mkdtemp(prefix="perpcs-train-")
        self._error: Exception | None = None
        self._closing = False
        trainer = DataParallelTrainer(
            _loop,
            train_loop_config={
                "desk": desk,
                "make_worker": make_worker,
                "beat_s": plan.beat_s,
                "threads": threads_of(cfg),
            },
            backend_config=_Independent(),
            scaling_config=ScalingConfig(
                num_workers=plan.workers,
                use_gpu=cfg.gpus > 0,
                resources_per_worker={"CPU": cfg.cpus} | ({"GPU": cfg.gpus} if cfg.gpus else {}),
            ),
            run_config=RunConfig(
                name="fleet", storage_path=self._folder, failure_config=FailureConfig(max_failures=-1)
            ),
        )
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name="ray-train", daemon=True)
        self._thread.start()

    def running(self) -> bool:
        """Whether the worker group runs."""
        if self._error is not None and not self._closing:
            raise self._error
        return self._thread.is_alive()

    def close(self) -> None:
        """Let go of the group: it has ended, or does when its workers stop."""
        self._closing = True
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except Exception as error:
            self._error = error


def _loop(config: dict[str, Any]) -> int:
    import torch

    torch.set_num_threads(config["threads"])
    rank = str(ray.train.get_context().get_world_rank())
    return work(config["desk"], rank, config["make_worker"], beat_s=config["beat_s"])
