"""One step of transformers' continuous batching at a time, with a correction per packed token.

transformers keeps the paged cache, schedules requests and packs a step's tokens into one row; the loop around it is
ours, because only between scheduling and the forward is it known whose token is where. Blocks of the cache are never
shared between requests: two users' adapters give different keys for the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perpcs.errors import ModelError
from perpcs.generate import ragged
from perpcs.generate.packed import BASE, PackedSource, Packing
from perpcs.lora.bank import AdapterBank
from perpcs.lora.inject import BankedModel


@dataclass(frozen=True)
class PageConfig:
    """Size of the cache and of a step."""

    page: int = 16
    """Tokens per block of the cache; the last block of a request is filled half on average."""
    cache_tokens: int = 16384
    """Tokens of all requests under way together. Memory: 2 * layers * key heads * head size * bytes each."""
    step_tokens: int = 512
    """Most tokens in one step; longer prompts are read in several steps, while others are answered."""
    requests: int = 64
    """Most requests under way."""


Pick = Callable[[list[str], Tensor], list[int]]
"""(request ids [N], logits [N, V]) -> next token of each."""


class PagedRunner:
    """The requests under way in one model. Not thread-safe: one thread calls it."""

    def __init__(self, model: BankedModel, config: PageConfig, *, bank: AdapterBank | None = None) -> None:
        """Raises ModelError for a model or a transformers release that has no continuous batching."""
        self.model, self.config, self.bank = model, config, bank
        self._original = model.model.config._attn_implementation
        self._manager, self._processor = _processor(model.model, config)
        self._ragged = model.model.config._attn_implementation == ragged.NAME
        self.capacity = int(self._processor.cache.num_blocks) * config.page
        self._slots: dict[str, int] = {}

    @property
    def requests(self) -> int:
        """Requests under way."""
        return len(self._slots)

    def pages(self, tokens: int) -> int:
        """Tokens of the cache that a request of this length takes."""
        return -(-tokens // self.config.page) * self.config.page

    def add(self, request_id: str, prompt: Sequence[int], *, max_new: int, slot: int = BASE) -> None:
        """Begin a request at the next step. The caller sees to it that slot and cache have room."""
        self._slots[request_id] = slot
        # End of answer is decided by the caller: with a list of ids per request, and with the reason.
        self._manager.add_request(
            list(prompt), request_id=request_id, max_new_tokens=max_new, eos_token_id=-1
        )

    def drop(self, request_id: str) -> None:
        """Forget a request; its part of the cache is free from the next step on. Unknown ids are ignored."""
        if self._slots.pop(request_id, None) is not None:
            self._processor.scheduler.set_request_cancellation(request_id)

    @torch.no_grad()
    def step(self, pick: Pick) -> list[tuple[str, int]]:
        """Forward one packed row; (request id, new token) of each request whose prompt has been read."""
        processor = self._processor
        if not processor.prepare_next_batch():
            return []
        io = processor.inputs_and_outputs
        rows = [(f.state.request_id, f.query_length) for f in io.requests_in_batch]
        new = [f.state.request_id for f in io.requests_in_batch if f.has_new_token]
        with self.model.route.through(self._source(rows)):
            logits = self._logits(self._inputs(io), len(new))
        tokens = pick(new, logits) if new else []
        io.output_ids[0, : len(tokens)] = torch.tensor(tokens, dtype=io.output_ids.dtype)
        processor.update_batch()
        while not self._manager.output_router.output_queue.empty():
            self._manager.output_router.output_queue.get_nowait()
        return list(zip(new, tokens, strict=True))

    def _source(self, rows: Sequence[tuple[str, int]]) -> PackedSource | None:
        slots = [slot for request_id, n in rows for slot in [self._slots[request_id]] * n]
        if self.bank is None or all(slot == BASE for slot in slots):
            return None
        rank = self.bank.rank_among(set(slots) - {BASE})
        return PackedSource(self.bank, Packing.of(slots, device=self.model.device), rank=rank)

    def _inputs(self, io: Any) -> dict[str, Any]:
        inputs = dict(io.get_model_kwargs())
        if self._ragged:
            queries = [f.query_length for f in io.requests_in_batch]
            pasts = [f.state.position_offset - q for f, q in zip(io.requests_in_batch, queries, strict=True)]
            plan = ragged.Ragged.of(queries, pasts, device=self.model.device)
            inputs["ragged"], inputs["is_causal"] = plan, False
            inputs["read_index"] = [plan.read_index(index) for index in inputs["read_index"]]
        return inputs

    def _logits(self, inputs: dict[str, Any], rows: int) -> Tensor:
        wanted = inputs["logits_indices"][:rows].long()
        if not rows:
            # Only unfinished prompts: one position is the least that can be asked for.
            wanted = torch.zeros(1, dtype=torch.int64, device=self.model.device)
        logits: Tensor = self.model.model(**inputs, logits_to_keep=wanted).logits[0]
        return logits[:rows]

    def reset(self) -> None:
        """Drop every request."""
        self._slots.clear()
        while not self._manager.input_queue.empty():
            self._manager.input_queue.get_nowait()
        self._processor.fail_all_requests(RuntimeError("reset"))
        self._processor.reset()

    def close(self) -> None:
        """Give the model its own attention back and free the cache."""
        self.model.model.set_attn_implementation(self._original)
        self._manager = self._processor = None


def _processor(model: Any, config: PageConfig) -> tuple[Any, Any]:
    try:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        settings = ContinuousBatchingConfig(
            page_size=config.page,
            num_blocks=-(-config.cache_tokens // config.page),
            max_batch_tokens=config.step_tokens,
            max_requests_per_batch=min(config.requests, config.step_tokens),
            max_blocks_per_request=0,
            allow_block_sharing=False,
            use_async_batching=False,
            use_cuda_graph=False,
            safety_margin=0.0,
        )
        plain = GenerationConfig(do_sample=False, eos_token_id=[], pad_token_id=0)
        manager = model.init_continuous_batching(plain, settings)
        if model.config._attn_implementation == "sdpa" and not getattr(model.config, "sliding_window", None):
            model.set_attn_implementation(ragged.register())
        return manager, manager._create_batch_processor()
    except (ImportError, AttributeError, TypeError, ValueError) as err:
        import transformers

        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise ModelError(
            f"generate: {type(model).__name__} has no continuous batching in transformers {transformers.__version__} "
            f"({reason}); use transformers 5.23, and a model with sdpa or flash attention"
        ) from err
