"""The papers' procedure, as a user of the released code would run it: one file per sharer, all of them read for every
target, gates scored in a loop, selection anew for every batch of 16 items, and the batches' adapters averaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from perpcs.population.batches import collate
from perpcs.population.prompts import Encoded

BATCH = 16


def assemble_as_published(
    model: Any, files: Sequence[Path], items: Sequence[Encoded], *, top_k: int, scale: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by projection for one target. `model` is a plain Hugging Face model; hooks add the mixed pieces."""
    sharers = [load_file(path) for path in files]
    names = [key[: -len("/gate")] for key in sharers[0] if key.endswith("/gate")]
    total: dict[str, tuple[Tensor, Tensor]] = {}
    batches = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
    for examples in batches:
        for name, (a, b) in _one_batch(model, sharers, names, examples, top_k=top_k, scale=scale).items():
            old = total.get(name)
            total[name] = (a / len(batches), b / len(batches)) if old is None else (
                old[0] + a / len(batches), old[1] + b / len(batches)
            )  # fmt: skip
    return total


@torch.no_grad()
def _one_batch(
    model: Any, sharers: Sequence[dict[str, Tensor]], names: Sequence[str], examples: Sequence[Encoded],
    *, top_k: int, scale: float,
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    batch = collate(examples, pad_id=0)
    counted = batch.labels[:, 1:] != -100
    chosen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def run(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            normed = F.layer_norm(x[:, :-1], x.shape[-1:])
            scores = []
            for sharer in sharers:
                gate = F.layer_norm(sharer[f"{name}/gate"], x.shape[-1:])
                dots = (normed @ gate) / x.shape[-1] ** 0.5
                scores.append(((dots * counted).sum(1) / counted.sum(1)).mean())
            best, which = torch.stack(scores).topk(top_k)
            weights = best.softmax(0)
            picked = [sharers[i] for i in which.tolist()]
            pairs = list(zip(weights, picked, strict=True))
            a = sum((w * s[f"{name}/a"] for w, s in pairs), start=torch.zeros(()))
            b = sum((w * s[f"{name}/b"] for w, s in pairs), start=torch.zeros(()))
            chosen[name] = (a, b)
            return output + (x @ a.T) @ b.T * scale

        return run

    hooks = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        places = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=places)
    finally:
        for handle in hooks:
            handle.remove()
    return chosen
