"""Sentence encoders for history keys, and the choice between them and the base model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perpcs.errors import ModelError
from perpcs.keys.history import BaseEncoder, HistoryEncoder, counted, mean_over_tokens, mean_rows, parts
from perpcs.lora.inject import BankedModel
from perpcs.population.prompts import Prompter
from perpcs.population.tasks import Task
from perpcs.records import User


def check_folder(folder: str) -> None:
    """Raises ModelError where there is no model."""
    if not (Path(folder).expanduser() / "config.json").is_file():
        raise ModelError(
            f"select.encoder: {folder!r} is no model folder (no config.json in it); use base or a folder"
        )


class SentenceEncoder:
    """A sentence encoder from a local folder in Hugging Face format, mean over tokens; then over the items."""

    def __init__(self, folder: str, task: Task, *, device: torch.device) -> None:
        """Raises ModelError when there is no such model."""
        from transformers import AutoModel, AutoTokenizer

        check_folder(folder)
        source = str(Path(folder).expanduser())
        self.task = task
        self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
        self.model: Any = AutoModel.from_pretrained(source, use_safetensors=True).eval().to(device)

    def __call__(self, users: Sequence[User]) -> np.ndarray:
        """See `HistoryEncoder`."""
        texts = [[self.task.search_text(item) for item in user.known] for user in users]
        counts = counted(texts, users)
        vectors = [self._texts(part) for part in parts([t for items in texts for t in items])]
        return mean_rows(np.concatenate(vectors), counts)

    @torch.no_grad()
    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(
            self.model.device
        )
        return mean_over_tokens(self.model(**inputs).last_hidden_state, inputs["attention_mask"])


def make_encoder(name: str, model: BankedModel, prompter: Prompter) -> HistoryEncoder:
    """The encoder that `select.encoder` names: `base`, or a folder, whose model is loaded once."""
    if name == "base":
        return BaseEncoder(model, prompter)
    return _sentence_encoder(name, prompter.task, model.device)


@lru_cache(maxsize=1)
def _sentence_encoder(folder: str, task: Task, device: torch.device) -> SentenceEncoder:
    return SentenceEncoder(folder, task, device=device)
