"""What a stage's process opens: the base, the prompter, the pool as assembly sees it."""

from __future__ import annotations

from pathlib import Path

from perpcs.assembly.assembler import Assembler
from perpcs.assembly.pieces import PartialPieces, Pieces
from perpcs.config import ExperimentConfig
from perpcs.config.schema import AssemblyConfig
from perpcs.model.base import FINGERPRINT_FILE, Base, load_base
from perpcs.population.prompts import Prompter
from perpcs.population.tasks import get_task
from perpcs.records import PoolSpec
from storage.folders import local_folder
from storage.lance_pieces import LancePieces
from storage.layout import Paths
from storage.masks import shared_mask
from storage.population import read_task


def base_folder(uri: str) -> Path:
    """The files of `paths.base` or `paths.raw_base` on this machine; from an object store they are copied once."""
    return local_folder(uri, named_by=FINGERPRINT_FILE)


def open_base(cfg: ExperimentConfig, paths: Paths) -> Base:
    """The adapted base of the experiment with banked layers."""
    return load_base(
        base_folder(paths.base), dtype=cfg.base.dtype, device=cfg.base.device, targets=cfg.lora.targets,
        layers=cfg.lora.layers,
    )  # fmt: skip


def open_prompter(cfg: ExperimentConfig, paths: Paths, base: Base) -> Prompter:
    """Prompts for the population's task."""
    return Prompter(get_task(read_task(paths.population)), base.tokenizer, cfg.prompt)


def pool_spec(cfg: ExperimentConfig, base: Base, *, keys: bool, history_dim: int = 0) -> PoolSpec:
    """What the adapters of this experiment have in common; `keys`: with gates and gradient keys, for sharing."""
    return PoolSpec(
        fingerprint=base.fingerprint,
        rank=cfg.lora.rank,
        alpha=cfg.lora.alpha,
        projections=base.model.projections,
        sketch=cfg.pool.sketch if keys else 0,
        gates=keys,
        history_dim=history_dim,
    )


def open_pieces(
    paths: Paths, base: Base, *, version: int | None = None, checksums: bool = False
) -> LancePieces:
    """The pool at a version (default: now). Raises MismatchError when it was made with another base."""
    return LancePieces.open(paths, base.fingerprint, version=version, checksums=checksums)


def shared_part(pieces: Pieces, assembly: AssemblyConfig, *, seed: int) -> Pieces:
    """What `assembly.sharers` and `assembly.sharing_ratio` leave of a pool: what is left at fewer is left at more."""
    names = [p.name for p in pieces.spec.projections]
    mask = shared_mask(
        pieces.ids, pieces.live, names, sharers=assembly.sharers, ratio=assembly.sharing_ratio, seed=seed
    )
    return pieces if mask is None else PartialPieces(pieces, mask)


def open_assembler(
    cfg: ExperimentConfig, paths: Paths, base: Base, *, version: int | None = None
) -> Assembler:
    """All rules over the experiment's pool at a version (default: now)."""
    whole = open_pieces(paths, base, version=version, checksums=cfg.pool.checksums)
    pieces = shared_part(whole, cfg.assembly, seed=cfg.seed)
    prompter = open_prompter(cfg, paths, base)
    return Assembler(base, prompter, pieces, config=cfg.assembly, encoder=cfg.select.encoder, seed=cfg.seed)
