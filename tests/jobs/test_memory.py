"""The measured peak of memory."""

import sys

import numpy as np
import pytest
import torch

from jobs.memory import peak_memory

CPU = torch.device("cpu")


def test_a_large_array_is_seen_and_forgotten_afterwards():
    with peak_memory(CPU) as before:
        pass
    with peak_memory(CPU) as large:
        np.ones(25_000_000).sum()
    assert large.bytes > before.bytes + 100_000_000
    if sys.platform != "linux":
        pytest.skip("only Linux lets a process forget its peak")
    with peak_memory(CPU) as after:
        pass
    assert after.bytes < large.bytes - 100_000_000
