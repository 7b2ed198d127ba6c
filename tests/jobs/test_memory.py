"""The measured peak of memory."""

import mmap
import sys

import pytest
import torch

from jobs.memory import peak_memory

CPU = torch.device("cpu")


def test_a_large_array_is_seen_and_forgotten_afterwards():
    with peak_memory(CPU) as before:
        pass
    with peak_memory(CPU) as large, mmap.mmap(-1, 200_000_000) as held:
        # Not the allocator's: a process may have told it to keep what is freed.
        for _ in range(200):
            held.write(b"1" * 1_000_000)
    assert large.bytes > before.bytes + 100_000_000
    if sys.platform != "linux":
        pytest.skip("only Linux lets a process forget its peak")
    with peak_memory(CPU) as after:
        pass
    assert after.bytes < large.bytes - 100_000_000
