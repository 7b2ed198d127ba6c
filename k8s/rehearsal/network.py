"""Machines on one machine: network namespaces on a bridge, each with its own address, and what runs in them.

Only inside a network, process and mount namespace of its own (see `k8s.rehearsal.__main__`), where nothing outside can
be reached or harmed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SUBNET = "10.77.0"
"""Of the bridge; it exists in these namespaces only."""
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def sh(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_bridge() -> None:
    """Loopback, a bridge, and a place for named namespaces."""
    sh("ip", "link", "set", "lo", "up")
    sh("mount", "-t", "tmpfs", "tmpfs", "/run")
    Path("/run/netns").mkdir()
    sh("ip", "link", "add", "br0", "type", "bridge")
    sh("ip", "addr", "add", f"{SUBNET}.254/24", "dev", "br0")
    sh("ip", "link", "set", "br0", "up")


def address(number: int) -> str:
    """Of machine `number`."""
    return f"{SUBNET}.{number}"


def add_machine(number: int) -> None:
    """A network namespace `n<number>` with an interface on the bridge."""
    name, outside = f"n{number}", f"v{number}"
    sh("ip", "netns", "add", name)
    sh("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
    sh("ip", "link", "set", outside, "master", "br0", "up")
    sh("ip", "-n", name, "addr", "add", f"{address(number)}/24", "dev", "eth0")
    sh("ip", "-n", name, "link", "set", "eth0", "up")
    sh("ip", "-n", name, "link", "set", "lo", "up")


def cut(number: int, *, off: bool = True) -> None:
    """Take a machine's cable out, or put it in again."""
    sh("ip", "link", "set", f"v{number}", "down" if off else "up")


def running(number: int) -> list[int]:
    """Ids of the processes on a machine."""
    listed = subprocess.run(["ip", "netns", "pids", f"n{number}"], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


def power_off(number: int) -> None:
    """SIGKILL to everything on a machine."""
    for pid in running(number):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def on_machine(number: int, command: Sequence[str], disk: Path) -> list[str]:
    """The command that runs `command` on a machine with a /tmp/ray (on `disk`) and a /dev/shm of its own, as pods have."""
    private = 'mkdir -p /tmp/ray && mount --bind "$1" /tmp/ray && mount -t tmpfs tmpfs /dev/shm && shift && exec "$@"'
    return ["ip", "netns", "exec", f"n{number}", "sh", "-c", private, "sh", str(disk), *command]


def beside(pid: int, command: Sequence[str]) -> list[str]:
    """The command that runs `command` on the machine where process `pid` runs, sharing its /tmp/ray."""
    return ["nsenter", "--target", str(pid), "--net", "--mount", "--", *command]


@dataclass
class Machine:
    """One machine's main process, and the process group that dies with it."""

    number: int
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, number: int, command: Sequence[str], env: Mapping[str, str], *, folder: Path) -> Machine:
        """Run a command as the machine's main process. folder: for what it prints, and for its disk, a new one as a
        new pod has. (Over the /tmp/ray of a head that died, `ray start --head` says that it is already running.)"""
        disk = Path(tempfile.mkdtemp(prefix=f"disk-{number}-", dir=folder))
        line = on_machine(number, command, disk)
        with (folder / f"machine-{number}.log").open("ab") as log:
            process = subprocess.Popen(line, env=dict(env), stdout=log, stderr=log, start_new_session=True)
        return cls(number, process)

    def kill(self) -> None:
        """The power goes."""
        power_off(self.number)
        self.process.wait(30)


@dataclass
class Clock:
    """Seconds since the start of a scene, and what was noted."""

    notes: list[tuple[str, float | str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def note(self, what: str, value: float | str | None = None) -> None:
        """Keep and print a value; without one the seconds since the start."""
        value = round(time.monotonic() - self.began, 1) if value is None else value
        self.notes.append((what, value))
        sys.stdout.write(f"  {what}: {value}\n")
        sys.stdout.flush()

    def wait(self, what: str, ready: Callable[[], bool], limit: float = 600.0, every: float = 0.2) -> None:
        """Wait until something holds, and note how long it took. Raises TimeoutError."""
        began = time.monotonic()
        while not ready():
            if time.monotonic() - began > limit:
                raise TimeoutError(f"{what}: not within {limit:g} s")
            time.sleep(every)
        self.note(what, round(time.monotonic() - began, 1))
