"""What one replica opens: the experiment's base, a second body over the same weights for assembly, the bank."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from perpcs.assembly.merge import merged_rank
from perpcs.config import ExperimentConfig
from perpcs.errors import ConfigError
from perpcs.generate.limits import EngineConfig
from perpcs.generate.paged import PageConfig
from perpcs.lora.bank import AdapterBank
from perpcs.lora.inject import BankedModel
from perpcs.model.base import FINGERPRINT_FILE, Base, load_base
from perpcs.population.prompts import Prompter
from perpcs.population.tasks import get_task
from perpcs.records import PoolSpec
from serve.config import ServeConfig
from serve.experiment import read_experiment
from storage.files import exists
from storage.folders import local_folder
from storage.layout import Paths
from storage.population import read_task


@dataclass(frozen=True)
class Opened:
    """A finished experiment, ready to be served."""

    experiment: ExperimentConfig
    paths: Paths
    base: Base
    assembly: Base
    """The same weights, for forward and backward passes while the engine owns the first."""
    prompter: Prompter


def open_experiment(config: ServeConfig) -> Opened:
    """Raises ConfigError where there is no finished experiment, and what loading its base raises."""
    paths = Paths.of(config.experiment)
    if not exists(paths.config) or not exists(paths.pool):
        raise ConfigError(
            f"experiment: {config.experiment!r} holds no finished experiment; run one first "
            "(make quickstart), or name its folder"
        )
    cfg = read_experiment(paths.config)
    device = config.engine.device or cfg.base.device
    base = load_base(
        local_folder(paths.base, named_by=FINGERPRINT_FILE),
        dtype=cfg.base.dtype,
        device=device,
        targets=cfg.lora.targets,
        layers=cfg.lora.layers,
    )
    prompter = Prompter(get_task(read_task(paths.population)), base.tokenizer, cfg.prompt)
    twin = Base(share_weights(base.model), base.tokenizer, base.fingerprint)
    return Opened(cfg, paths, base, twin, prompter)


def share_weights(model: BankedModel) -> BankedModel:
    """A second model over the same tensors: an engine owns its model, and the weights need not be there twice."""
    tensors: list[Any] = [*model.model.parameters(), *model.model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def make_bank(spec: PoolSpec, model: BankedModel, config: ServeConfig) -> AdapterBank:
    """Room for `engine.slots` adapters of the largest rank that may be asked for. Raises ConfigError for a rank below the
    pool's."""
    rank = config.engine.rank or merged_rank("concat", rank=spec.rank, k=config.assembly.max_top_k)
    if rank < spec.rank:
        raise ConfigError(f"engine.rank: {rank} is below the pool's rank {spec.rank}; raise it, or 0")
    return AdapterBank(
        model.projections, config.engine.slots, rank=rank, scale=spec.alpha / spec.rank, device=model.device
    )


def engine_limits(config: ServeConfig) -> EngineConfig:
    """The engine's part of the settings."""
    e = config.engine
    pages = PageConfig(cache_tokens=e.cache_tokens, step_tokens=e.step_tokens, requests=e.requests)
    return EngineConfig(pages=pages, waiting=e.waiting, max_new=config.limits.max_tokens, loaders=e.loaders)
