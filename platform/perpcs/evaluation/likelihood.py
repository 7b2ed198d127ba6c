"""How likely given texts are under users' adapters: the loss of a label, read off one forward pass. Shapes: N examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from perpcs.lora.bank import AdapterBank
from perpcs.lora.inject import BankedModel
from perpcs.lora.kernel import Slots
from perpcs.lora.sources import BankSource
from perpcs.population.batches import collate
from perpcs.population.prompts import Encoded
from perpcs.train.loss import item_losses


@torch.no_grad()
def label_losses(
    model: BankedModel,
    examples: Sequence[Encoded],
    *,
    bank: AdapterBank | None,
    slots: Sequence[int],
    batch: int,
) -> np.ndarray:
    """[N] mean loss (nats per label token) of each example under its slot's adapter; without a bank, under the base.

    `batch` examples go through the model at once, those of like length together. Raises ValueError for one without label
    tokens.
    """
    if not all(e.label for e in examples):
        raise ValueError("an example without label tokens has no loss")
    found = np.zeros(len(examples))
    order = np.argsort([len(e.prompt) + len(e.label) for e in examples], kind="stable")
    for rows in (order[i : i + batch] for i in range(0, len(order), batch)):
        tokens = collate([examples[i] for i in rows], pad_id=model.pad_id, device=model.device)
        index = torch.tensor([slots[i] for i in rows], device=model.device)
        source = None if bank is None else BankSource(bank, Slots(index))
        logits = model.label_logits(tokens, source=source)
        nll, count = item_losses(logits, tokens.labels[:, -tokens.label_span :])
        found[rows] = (nll / count).double().cpu().numpy()
    return found
