"""Several processes that make one training, and a training that goes on where it was killed.

Every process holds all parameters and takes its part of each step's visits. A step's loss is a mean over the label tokens
of all visits, so gradients of the parts add up to that of the whole, and all processes make the same update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

State = Mapping[str, Tensor]
"""What a training needs to go on, by name."""


@dataclass(frozen=True)
class Team:
    """This process among `size`. With more than one, torch's process group must be there (Ray Train makes it)."""

    rank: int = 0
    size: int = 1

    def part(self, visits: int) -> np.ndarray:
        """Which visits of a step are this process's, every size-th."""
        return np.arange(self.rank, visits, self.size)

    def add_up(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        if self.size > 1:
            from torch import distributed

            for tensor in tensors:
                distributed.all_reduce(tensor)


ALONE = Team()


class Journal(Protocol):
    """Where a training's state is kept while it runs."""

    def load(self) -> State | None:
        """The state to go on from; None to begin."""

    def step(self, state: Callable[[], State]) -> None:
        """Called after every step; keeps the state when it is time."""
