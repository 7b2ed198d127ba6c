"""Training in packs that fit into memory: planned for the users at hand, halved when the plan was wrong."""

from __future__ import annotations

import gc
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from perpcs.lora.inject import BankedModel
from perpcs.records import SharerAdapter
from perpcs.train.data import UserData
from perpcs.train.pack import Passes
from perpcs.train.planner import Plan, Shape, plan
from perpcs.train.sharers import PackError

log = logging.getLogger(__name__)

Train = Callable[[Sequence[UserData], Passes], list[SharerAdapter]]
"""Trains one pack, e.g. `perpcs.train.sharers.train_own` with everything else fixed."""
_SIGNS = ("allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""In messages of errors that have no class of their own: main memory, CUDA itself, its libraries' work space."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def model_planner(
    model: BankedModel, *, rank: int, batch: int, memory: int
) -> Callable[[Sequence[UserData]], Plan]:
    """Plans for packs of this model: `batch` items per user and step, within `memory` bytes."""
    shape = Shape.of(model.model, model.projections, rank=rank)

    def planned(users: Sequence[UserData]) -> Plan:
        examples = [e for user in users for e in user.examples]
        tokens = max(sum(len(e.prompt) + len(e.label) for e in user.examples) for user in users)
        return plan(
            shape,
            memory=memory,
            users=len(users),
            batch=batch,
            length=max(len(e.prompt) + len(e.label) for e in examples),
            label=max(len(e.label) for e in examples),
            states=tokens * shape.hidden * shape.width if model.layers.first else 0,
        )

    return planned


class PackFitter:
    """Trains any number of users in packs that fit. What was learnt about memory holds for all that follow.

    A user's result is the same in any pack (see `perpcs.train.pack`), so a retry costs time and nothing else.
    """

    def __init__(self, planned: Callable[[Sequence[UserData]], Plan]) -> None:
        self._planned = planned
        self._learnt: tuple[int, Passes] | None = None
        self._said = ""

    def train(self, users: Sequence[UserData], train: Train) -> tuple[list[SharerAdapter], dict[str, str]]:
        """All users, in order: (finished adapters, reason by id of the users that cannot be trained).

        When memory runs out the pack is halved, down to one user; then its passes, down to one item; then activations
        are computed again. Raises ConfigError when not even one user with one item fits into memory.
        """
        size, passes = self._start(users)
        left, results, failed = deque(users), list[SharerAdapter](), dict[str, str]()
        while left:
            pack = [left.popleft() for _ in range(min(size, len(left)))]
            try:
                results += train(pack, passes)
                continue
            except PackError as error:
                results += error.finished
                failed |= error.refused
                continue
            except Exception as error:
                if not out_of_memory(error):
                    raise
            # Outside of the handler: the error's traceback holds on to the very tensors that must go.
            _release()
            smaller = _smaller(pack, passes)
            if smaller is None:
                failed[pack[0].user_id] = (
                    f"user {pack[0].user_id}: does not fit into memory alone; lower prompt.max_length"
                )
                continue
            size, passes = self._learnt = smaller
            left.extendleft(reversed(pack))
            log.warning("out of memory with %d users: trying packs of %d, %s", len(pack), size, passes)
        return results, failed

    def _start(self, users: Sequence[UserData]) -> tuple[int, Passes]:
        able = [user for user in users if user.examples]
        if not able:
            return len(users), Passes()
        made = self._planned(able)
        if made.why != self._said:
            self._said = made.why
            log.info("%s", made.why)
        if self._learnt is None:
            return made.users, made.passes
        size, passes = self._learnt
        return min(size, made.users), stricter(passes, made.passes)


def stricter(left: Passes, right: Passes) -> Passes:
    """Passes that need no more memory than either."""
    limits = [p.tokens for p in (left, right) if p.tokens]
    return replace(left, tokens=min(limits, default=0), again=left.again or right.again)


def device_memory(device: torch.device, *, share: float = 1.0) -> int:
    """Bytes for one of several processes on a device, what it holds already included: a share of it, and of a GPU no
    more than it has there and is free now."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(min(torch.cuda.memory_reserved(device) + free, share * total))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else ""
    return int(share * min(physical, int(limit) if limit.isdecimal() else physical))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in main memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _smaller(pack: Sequence[UserData], passes: Passes) -> tuple[int, Passes] | None:
    """The next smaller thing to try, or None."""
    if len(pack) > 1:
        return len(pack) // 2, passes
    lengths = [len(e.prompt) + len(e.label) for e in pack[0].examples]
    now = passes.tokens or 8 * max(lengths)
    if now > max(lengths):
        return 1, replace(passes, tokens=max(now // 2, max(lengths)))
    return None if passes.again else (1, replace(passes, again=True))


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
