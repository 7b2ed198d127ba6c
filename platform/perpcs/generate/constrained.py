"""Constrained decoding for tasks whose outputs are labels: the label that the model finds most likely.

Shapes: N prompts, C choices, T tokens of the longest prompt, L tokens of the longest choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perpcs.lora.bank import AdapterBank
from perpcs.lora.inject import BankedModel
from perpcs.lora.kernel import Slots
from perpcs.lora.sources import BankSource
from perpcs.population.batches import collate_prompts


@torch.no_grad()
def choose(
    model: BankedModel,
    prompts: Sequence[tuple[int, ...]],
    choices: Sequence[tuple[int, ...]],
    *,
    bank: AdapterBank | None,
    slots: Sequence[int],
    batch: int = 64,
) -> list[int]:
    """Index of each prompt's most likely choice: the sum of its tokens' log probabilities, end token included.

    Row j uses slot slots[j] of the bank, or the base when bank is None. A prompt is read once for all choices; at most
    `batch` continuations, and at least one prompt's, are in memory at a time. Ties go to the earlier choice.
    """
    order = sorted(range(len(prompts)), key=lambda j: len(prompts[j]))
    step = max(1, batch // len(choices))
    found = np.zeros(len(prompts), np.int64)
    for start in range(0, len(order), step):
        rows = order[start : start + step]
        slot_N = torch.tensor([slots[j] for j in rows], device=model.device)
        scores = _scores(model, [prompts[j] for j in rows], choices, bank=bank, slot_N=slot_N)
        found[rows] = scores.argmax(1).cpu().numpy()
    return [int(i) for i in found]


def _scores(
    model: BankedModel,
    prompts: Sequence[tuple[int, ...]],
    choices: Sequence[tuple[int, ...]],
    *,
    bank: AdapterBank | None,
    slot_N: Tensor,
) -> Tensor:
    """[N, C] log probabilities."""
    inputs = collate_prompts(prompts, pad_id=model.pad_id, device=model.device)
    out = _forward(model, inputs.input_ids, inputs.attention_mask, bank=bank, slots=slot_N, past=None)
    tokens_CL, real_CL = _padded(choices, pad_id=model.pad_id, device=model.device)
    first_NC = out.logits[:, -1].float().log_softmax(-1)[:, tokens_CL[:, 0]]
    if tokens_CL.shape[1] == 1:
        return first_NC
    cache, count = out.past_key_values, len(choices)
    cache.batch_repeat_interleave(count)
    again = _forward(
        model,
        tokens_CL[:, :-1].repeat(len(prompts), 1),
        torch.cat(
            [inputs.attention_mask.repeat_interleave(count, 0), real_CL[:, :-1].repeat(len(prompts), 1)], 1
        ),
        bank=bank,
        slots=slot_N.repeat_interleave(count),
        past=cache,
    )
    log_NCLV = again.logits.float().log_softmax(-1).unflatten(0, (len(prompts), count))
    target_NCL1 = tokens_CL[:, 1:].expand(len(prompts), -1, -1).unsqueeze(-1)
    rest_NCL = log_NCLV.gather(-1, target_NCL1).squeeze(-1)
    return first_NC + (rest_NCL * real_CL[:, 1:]).sum(-1)


def _forward(
    model: BankedModel, ids: Tensor, mask: Tensor, *, bank: AdapterBank | None, slots: Tensor, past: Any
) -> Any:
    """The model's output for new tokens after `past`; mask covers past and new tokens."""
    source = None if bank is None else BankSource(bank, Slots(slots))
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with model.route.through(source):
        return model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True
        )


def _padded(
    choices: Sequence[tuple[int, ...]], *, pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(tokens, 1 where real), both [C, L]; padding at the end, where no real token sees it."""
    length = max(len(choice) for choice in choices)
    tokens = [[*choice, *[pad_id] * (length - len(choice))] for choice in choices]
    real = [[1] * len(choice) + [0] * (length - len(choice)) for choice in choices]
    return torch.tensor(tokens, device=device), torch.tensor(real, device=device)
