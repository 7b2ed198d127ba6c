"""One driver per experiment: a sign in `driver.json`, renewed while it works and removed when it ends.

Two drivers could not harm the pool, whose first commit of a user counts, but each would make its own base. So the second
is refused. Who is alive is decided without comparing clocks: on the same machine by asking for the process,
otherwise by watching whether the sign is renewed.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from perpcs.errors import StoreError
from storage.files import exists, is_remote, local, read_json, remove, write_json
from storage.layout import Paths

BEAT_S = 5.0
"""Between two renewals of the sign."""
WATCH_S = 3 * BEAT_S
"""How long a sign of another machine is watched before its driver counts as dead."""
SETTLE_S = 1.0
"""Between claiming and reading back on a shared place: of two that claim at once, the later writer has it."""

log = logging.getLogger(__name__)

_mine: dict[str, int] = {}
"""Experiments that this process holds, and how often: stages within a pipeline hold what it holds."""
_guard = threading.Lock()


@contextmanager
def claim(paths: Paths, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Hold the experiment for the length of the block. Raises StoreError while another driver does."""
    with _guard:
        held = _mine[paths.root] = _mine.get(paths.root, 0) + 1
    try:
        if held > 1:
            yield
            return
        with _sign(paths, sleep):
            yield
    finally:
        with _guard:
            _mine[paths.root] -= 1


def driver_of(paths: Paths) -> dict[str, Any] | None:
    """The sign of the driver that works, or worked last and was killed; None when it ended by itself."""
    with suppress(StoreError):
        return dict(read_json(paths.driver)) if exists(paths.driver) else None
    return None


@contextmanager
def _sign(paths: Paths, sleep: Callable[[float], None]) -> Iterator[None]:
    fresh = not exists(paths.root)
    other = driver_of(paths)
    if other is not None and _alive(paths, other, sleep):
        raise _taken(paths, other)
    mine = {"id": uuid.uuid4().hex, **_identity(), "since": time.time(), "at": time.time(), "beat": 0}
    write_json(paths.driver, mine)
    if other is not None:  # somebody else may have found the same dead driver just now
        sleep(SETTLE_S)
        now = driver_of(paths)
        if now is not None and now["id"] != mine["id"]:
            raise _taken(paths, now)
    over = threading.Event()
    thread = threading.Thread(target=_renew, args=(paths, mine, over), name="driver-sign", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if (driver_of(paths) or mine)["id"] == mine["id"]:
            with suppress(StoreError):
                remove(paths.driver)
        if fresh and not is_remote(paths.root):
            with suppress(
                OSError
            ):  # of a stage that was refused nothing stays; a folder with anything in it does
                local(paths.root).rmdir()


def _renew(paths: Paths, mine: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        mine = mine | {"beat": mine["beat"] + 1, "at": time.time()}
        try:
            if (driver_of(paths) or mine)["id"] == mine["id"]:
                write_json(paths.driver, mine)
        except StoreError as error:
            log.warning("the driver's sign cannot be renewed, work goes on: %s", error)


def _alive(paths: Paths, sign: dict[str, Any], sleep: Callable[[float], None]) -> bool:
    here = _identity()
    if (sign.get("host"), sign.get("boot")) == (here["host"], here["boot"]):
        return started(sign["process"]) == sign["started"]
    log.info(
        "%s: another machine's driver left a sign; watching for %g s whether it lives", paths.root, WATCH_S
    )
    sleep(WATCH_S)
    now = driver_of(paths)
    return now is not None and (now["id"], now["beat"]) != (sign["id"], sign["beat"])


def _taken(paths: Paths, sign: dict[str, Any]) -> StoreError:
    return StoreError(
        f"{paths.root}: another driver works on this experiment ({sign['host']}, process {sign['process']}); "
        "wait for it or stop it, or use another folder (experiment=…)"
    )


def _identity() -> dict[str, Any]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "process": os.getpid(),
        "started": started(os.getpid()),
    }


def started(process: int) -> str:
    """When a process of this machine started, in the kernel's own count; '' when there is none."""
    try:
        if Path("/proc/self/stat").exists():
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
        os.kill(process, 0)
    except OSError:
        return ""
    return "running"
