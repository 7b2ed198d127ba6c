"""A process that commits sharers to a pool and may be told to die; run by test_crashes.py.

writer.py URI MODE ARGUMENT ID...: mode `step` kills itself before write number ARGUMENT; `each` commits one
by one with content seed ARGUMENT; `full` commits all at once on a disk that takes no file above ARGUMENT bytes;
`fill` commits on a small disk until it is full, then with room again; `powerless` gives up root's rights, then
reads and tries to write.
"""

import os
import resource
import signal
import sys
from pathlib import Path

from conftest import make_adapter, make_spec

import storage.pool as pools
import storage.sharers as sharers
from perpcs.errors import StoreError
from perpcs.records import PoolSpec
from storage.upkeep import cleanup, compact
from storage.verify import verify
from storage.withdraw import withdraw


def die_at(step: int) -> None:
    """SIGKILL this process when the store is about to make its write number `step`."""
    calls = iter(range(step + 1))

    def guarded(function):
        def run(*args):
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return run

    pools.create_table, pools.append = guarded(pools.create_table), guarded(pools.append)
    sharers.append = guarded(sharers.append)


def powerless(uri: str, ids: list[str]) -> None:
    """Say what can be read, then how each kind of writing is refused."""
    import lance  # noqa: F401  while the interpreter's own files can still be read

    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    pool = pools.Pool.open(uri)
    view = pool.view()
    print(view.ids, view.adapter(view.ids[0]).user_id == view.ids[0])
    for action in (
        lambda: pool.commit([make_adapter(user_id, pool.spec) for user_id in ids]),
        lambda: withdraw(pool, view.ids[0]),
        lambda: compact(pool),
        lambda: cleanup(pool, grace_s=0),
    ):
        try:
            action()
            print("done")
        except StoreError as error:
            print(error)


def fill(uri: str, spec: PoolSpec) -> None:
    """Say how each kind of writing is refused by a full disk, and how many sharers survive it."""
    ballast = Path(uri).with_name("ballast")
    ballast.write_bytes(bytes(100_000))
    pool, count = pools.Pool.create(uri, spec=spec), 0

    def until_full() -> None:
        nonlocal count
        while True:
            pool.commit([make_adapter(f"u{count}", spec)])
            count += 1

    def another() -> pools.Pool:
        return pools.Pool.open_or_create(uri + "-2", spec=spec)

    for action in (until_full, lambda: withdraw(pool, "u0"), another):
        try:
            action()
        except StoreError as error:
            print(error)
    ballast.unlink()
    pool.commit([make_adapter("last", spec)])
    view, check = pools.Pool.open(uri).view(), verify(pools.Pool.open(uri))
    print(len(view) == count + 1 > 3, check.problems, another().view().ids)


def main() -> None:
    uri, mode, argument, ids = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    spec = make_spec()
    if mode == "fill":
        fill(uri, spec)
        return
    if mode == "powerless":
        powerless(uri, ids)
        return
    if mode == "step":
        die_at(argument)
        pool = pools.Pool.open_or_create(uri, spec=spec)
        pool.commit([make_adapter(user_id, spec) for user_id in ids])
        return
    pool = pools.Pool.open_or_create(uri, spec=spec)
    if mode == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (argument, argument))
        try:
            pool.commit([make_adapter(user_id, spec) for user_id in ids])
        except StoreError as error:
            print(error)
        return
    for user_id in ids:
        try:
            done = pool.commit([make_adapter(user_id, spec, argument)])
        except StoreError as error:
            assert "other content" in str(error), error
            continue
        print(*done.added, flush=True)


if __name__ == "__main__":
    main()
