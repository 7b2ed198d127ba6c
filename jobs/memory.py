"""Peak memory of a piece of work in this process."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Peak:
    """Filled in when the work is over. On a GPU its allocated memory, otherwise the process's resident memory with
    the libraries and the base in it."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the most memory that was in use at once during the block."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = int(torch.cuda.max_memory_allocated(device))
        return
    _reset()
    yield peak
    peak.bytes = _resident_peak()


def _reset() -> None:
    """Forget the peak so far, where the kernel allows it; elsewhere the peak is that of the process's life."""
    try:
        _RESET.write_text("5")
    except OSError:
        return


def _resident_peak() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
