"""OPPU with other kinds of PEFT: prompt tuning and (IA)^3 through the PEFT library, one user after the other.

Rows of a comparison and no more: the library knows one user at a time, so this costs what the bank saves.
Sequences are padded on the right while training and not at all while answering: with virtual tokens in front, the
library counts positions without looking at the mask.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from perpcs.config.schema import KindsConfig
from perpcs.errors import ConfigError
from perpcs.population.batches import IGNORE, DataOrder
from perpcs.population.prompts import Encoded
from perpcs.seeds import seed_of
from perpcs.train.data import UserData, usable
from perpcs.train.optimiser import learning_rate

Kind = Literal["prompt_tuning", "ia3"]
State = dict[str, Tensor]
"""What is trained and stored of one user, by the library's names."""


class KindModel:
    """A plain causal LM that takes one user's parameters of one kind at a time."""

    def __init__(self, model: Any, kind: Kind, config: KindsConfig, *, pad_id: int, seed: int) -> None:
        """`model` is frozen and, for (IA)^3, changed in place. Raises ConfigError where the library has no defaults for
        the model's architecture."""
        from peft import IA3Config, PromptTuningConfig, TaskType, get_peft_model

        self.kind, self.config, self.pad_id, self.seed = kind, config, pad_id, seed
        shape: Any = IA3Config(task_type=TaskType.CAUSAL_LM)
        if kind == "prompt_tuning":
            shape = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=config.virtual_tokens)
        try:
            with torch.random.fork_rng(), warnings.catch_warnings():
                # The library asks transformers by a name that is about to change.
                warnings.filterwarnings(
                    "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
                )
                torch.manual_seed(seed_of(seed, kind))
                self.model = get_peft_model(model, shape)
        except ValueError as error:
            raise ConfigError(f"base.model: PEFT cannot apply {kind} to it: {error}") from error
        self._start = {name: value.clone() for name, value in self.state().items()}

    def state(self) -> State:
        """A copy of the parameters that are in use."""
        return {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def load(self, state: State) -> None:
        """Use these parameters. Raises ValueError when they are not of this kind and shape."""
        own = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if {n: p.shape for n, p in own.items()} != {n: v.shape for n, v in state.items()}:
            raise ValueError(f"the stored parameters are not those of {self.kind} with these settings")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def train(self, user: UserData) -> tuple[State, float]:
        """(the user's parameters, mean loss of the last tenth of steps), from the start that all users share.

        Raises DataError for a user without an item to train on.
        """
        user, config = usable(user), self.config
        self.load(self._start)
        rates = {"prompt_tuning": config.prompt_lr, "ia3": config.ia3_lr}
        weights = [p for p in self.model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)
        order = DataOrder(user.user_id, len(user.examples), seed=self.seed)
        losses = []
        for step in range(config.steps):
            rate = learning_rate(step, steps=config.steps, warmup=5, peak=rates[self.kind])
            optimiser.param_groups[0]["lr"] = rate
            loss = self._loss([user.examples[i] for i in order.next(config.batch)])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, config.clip)
            optimiser.step()
            losses.append(float(loss.detach()))
        last = losses[-max(1, len(losses) // 10) :]
        return self.state(), sum(last) / len(last)

    def _loss(self, examples: Sequence[Encoded]) -> Tensor:
        """Mean over the label tokens of all examples."""
        ids, mask, labels = _right_padded(examples, pad_id=self.pad_id)
        logits = self._logits(ids, mask)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[N, T, V] in float32, without those of virtual tokens."""
        device = next(self.model.parameters()).device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        return logits[:, -ids.shape[1] :].float().cpu()

    @torch.no_grad()
    def answer(self, prompts: Sequence[tuple[int, ...]], *, max_new: int, eos_id: int) -> list[list[int]]:
        """Greedy continuations with the parameters in use, end token left out; prompts of one length together."""
        device = next(self.model.parameters()).device
        out: list[list[int]] = [[] for _ in prompts]
        for length in sorted({len(p) for p in prompts}):
            rows = [j for j, p in enumerate(prompts) if len(p) == length]
            ids = torch.tensor([prompts[j] for j in rows], device=device)
            with warnings.catch_warnings():  # that positions are not looked at: nothing is padded here
                warnings.filterwarnings("ignore", message="Position ids are not supported")
                tokens = self.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new, do_sample=False,
                    pad_token_id=self.pad_id, eos_token_id=eos_id,
                )  # fmt: skip
            for j, row in zip(rows, tokens[:, length:].tolist(), strict=True):
                out[j] = row[: row.index(eos_id)] if eos_id in row else row
        return out

    @torch.no_grad()
    def choose(self, prompts: Sequence[tuple[int, ...]], choices: Sequence[tuple[int, ...]]) -> list[int]:
        """Index of each prompt's most likely choice, as `perpcs.generate.constrained.choose`."""
        return [int(self._scores(prompt, choices).argmax()) for prompt in prompts]

    @torch.no_grad()
    def label_losses(self, examples: Sequence[Encoded]) -> list[float]:
        """Mean loss of each example's label, nats per token, as `perpcs.evaluation.likelihood.label_losses`."""
        return [-float(self._scores(e.prompt, [e.label])[0]) / len(e.label) for e in examples]

    def _scores(self, prompt: tuple[int, ...], choices: Sequence[tuple[int, ...]]) -> Tensor:
        ids, mask, labels = _right_padded([Encoded(prompt, c) for c in choices], pad_id=self.pad_id)
        logits = self._logits(ids, mask)
        nll = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="none"
        )
        return -nll.view(len(choices), -1).sum(1)


def _right_padded(examples: Sequence[Encoded], *, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, mask, labels), each [N, T]; a label is the token itself, IGNORE elsewhere."""
    width = max(len(e.prompt) + len(e.label) for e in examples)
    shape = (len(examples), width)
    ids, mask, labels = (
        torch.full(shape, pad_id),
        torch.zeros(shape, dtype=torch.long),
        torch.full(shape, IGNORE),
    )
    for row, e in enumerate(examples):
        used = len(e.prompt) + len(e.label)
        ids[row, :used] = torch.tensor(e.prompt + e.label)
        mask[row, :used] = 1
        labels[row, len(e.prompt) : used] = torch.tensor(e.label)
    return ids, mask, labels
