"""Ray: start one of our own or join a cluster, and run a stage's function in one of its processes.

Ray is imported where it is first needed, so that `--help` and a misspelt key answer at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from jobs.relay import listen, narrate
from jobs.terminal import QUIET_ENV
from perpcs.config.schema import RayConfig
from perpcs.errors import ConfigError, PerpcsError

T = TypeVar("T")

OBJECT_STORE_BYTES = 256 << 20
"""Of a local Ray. No Ray object of ours holds a model or a pool, so little is enough."""

NO_RAY = "none"
"""The `ray.address` under which everything runs in this process."""

WORKER_ENV = QUIET_ENV | {"RAY_USAGE_STATS_ENABLED": "0", "MPLBACKEND": "Agg"}

log = logging.getLogger(__name__)


@contextmanager
def connect(cfg: RayConfig) -> Iterator[None]:
    """Ray for the length of the block; a Ray that this process already has is used as it is, and left alone.

    With `ray.address: none` no Ray at all: the block's stages run in this process. Raises ConfigError when the cluster
    cannot be reached, or can never hold `ray.workers` workers.
    """
    if cfg.address == NO_RAY:
        yield
        return
    import ray

    if ray.is_initialized():
        require_room(cfg)
        yield
        return
    address = cluster_address(cfg.address, os.environ)
    with _own_sigterm():
        if address is None:
            start_local()
        else:
            _join(address)
    try:
        require_room(cfg)
        yield
    finally:
        ray.shutdown()


def cluster_address(configured: str, env: Mapping[str, str]) -> str | None:
    """The cluster to join, or None to start a Ray of our own.

    RAY_ADDRESS, which is set inside a submitted job, wins over the config. With http:// it is the address
    that jobs are submitted to, which a driver cannot join.
    """
    inherited = env.get("RAY_ADDRESS", "")
    if inherited and not inherited.startswith("http"):
        return inherited
    return None if configured == "local" else configured


def start_local(num_cpus: int | None = None) -> None:
    """Start a Ray of our own on this machine, which ignores clusters of others; num_cpus: claim so many.

    No dashboard: its processes take 0.7 GiB, more than the training of a small model. Workers inherit their
    environment: with a Ray runtime environment they would start only on demand.
    """
    import ray

    with _environment(WORKER_ENV | {"PYTHONPATH": source_path(os.environ)}):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the program's answer to SIGTERM: `ray.init` replaces it by one that exits without unwinding."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _join(address: str) -> None:
    import ray

    try:
        ray.init(**cluster_arguments(address, os.environ))
    except ConnectionError as error:
        raise ConfigError(
            f"ray.address (or RAY_ADDRESS): {address!r}: no Ray cluster answers there; "
            "start one (ray start --head), or use ray.address=local"
        ) from error


def cluster_arguments(address: str, env: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `ray.init` to join a cluster.

    A submitted job already has its runtime environment, and Ray refuses a second one that disagrees.
    Otherwise this checkout's folders are named, which nodes that do not have them ignore.
    """
    joined: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in env:
        joined["runtime_env"] = {"env_vars": WORKER_ENV | {"PYTHONPATH": source_path(env)}}
    return joined


def source_path(env: Mapping[str, str]) -> str:
    """PYTHONPATH under which workers import the very packages that this process imported."""
    import jobs
    import perpcs

    roots = [str(Path(str(package.__file__)).resolve().parents[1]) for package in (jobs, perpcs)]
    return os.pathsep.join(
        dict.fromkeys([*roots, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))])
    )


def require_room(cfg: RayConfig, *, key: str = "ray.workers", workers: int = 0) -> None:
    """ConfigError when the cluster, grown as far as it may, cannot hold `ray.workers` workers, or as many as another
    setting `key` says.

    An autoscaler whose limits Ray does not know, as KubeRay's, is taken at its word: the fleet waits and says so.
    """
    import ray
    from ray._private import state

    if limits := state.state.get_max_resources_from_cluster_config():
        nodes = [{str(name): float(amount) for name, amount in limits.items()}]
    elif grows():
        return
    else:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = workers_that_fit(nodes, cpus=cfg.cpus, gpus=cfg.gpus)
    wanted = workers or cfg.workers
    if room < wanted:
        each = f"{cfg.cpus:g} CPU" + (f" and {cfg.gpus:g} GPU" if cfg.gpus else "")
        has = ", ".join(f"{node.get('CPU', 0):g} CPU {node.get('GPU', 0):g} GPU" for node in nodes[:4])
        raise ConfigError(
            f"{key}: {wanted} with {each} each cannot run here ({has}), at most {room} can; "
            f"lower {key}, ray.cpus or ray.gpus"
        )


def grows() -> bool:
    """Whether the connected cluster has Ray's autoscaler, which adds nodes when work waits."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    return bool(is_autoscaler_v2(fetch_from_server=True))


def workers_that_fit(nodes: Sequence[Mapping[str, float]], *, cpus: float, gpus: float) -> int:
    """How many workers all nodes together can hold; one worker lives on one node."""
    needs = {"CPU": cpus, "GPU": gpus}
    # The small addend keeps 3 * 0.1 <= 0.3 true.
    return sum(
        min(int(node.get(name, 0.0) / need + 1e-9) for name, need in needs.items() if need > 0)
        for node in nodes
    )


def threads_of(cfg: RayConfig) -> int:
    """torch threads of one worker."""
    return cfg.threads or max(1, int(cfg.cpus))


_here: ContextVar[bool] = ContextVar("here", default=False)


@contextmanager
def in_this_process() -> Iterator[None]:
    """For the block, stages run in this process, which has a worker's resources already, instead of in Ray tasks."""
    token = _here.set(True)
    try:
        yield
    finally:
        _here.reset(token)


def runs_here(cfg: RayConfig) -> bool:
    """Whether work stays in this process: inside `in_this_process`, or with `ray.address: none`."""
    return _here.get() or cfg.address == NO_RAY


def as_worker(cfg: RayConfig) -> None:
    """Give torch a worker's threads where this process does a worker's work; a sweep's worker has them already."""
    if not _here.get():
        import torch

        torch.set_num_threads(threads_of(cfg))


def run_remote(fn: Callable[..., T], *args: Any, cfg: RayConfig) -> T:
    """`fn(*args)` in one Ray task with the resources of one worker; its PerpcsErrors come back as themselves.

    Its log lines and progress bars appear here. A task whose process dies is tried again `ray.retries`
    times, so fn must be able to start over.
    """
    if runs_here(cfg):
        as_worker(cfg)
        return fn(*args)
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    name = getattr(fn, "__name__", "a task")
    with connect(cfg):
        for tries in range(1, cfg.retries + 2):
            try:
                return _run_once(fn, args, cfg)
            except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
                died = f"{str(error).splitlines()[0]} (out of memory?)"
                if tries > cfg.retries:
                    raise PerpcsError(f"{name}: its process died {tries} times: {died}") from error
                log.warning("%s: its process died and is started again: %s", name, died)
    raise AssertionError


def _run_once(fn: Callable[..., T], args: tuple[Any, ...], cfg: RayConfig) -> T:
    import ray

    # Ray's own retry would leave out as many messages as were heard of the first try: the result may be one of them.
    options = {"num_cpus": cfg.cpus, "num_gpus": cfg.gpus, "max_retries": 0}
    task = ray.remote(num_returns="streaming", **options)(narrate)
    result: T = listen(map(fetch, task.remote(_with_threads, (threads_of(cfg), fn, args))))
    return result


def _with_threads(threads: int, fn: Callable[..., T], args: tuple[Any, ...]) -> T:
    import torch

    torch.set_num_threads(threads)
    return fn(*args)


def fetch(reference: Any, *, timeout: float | None = None) -> Any:
    """`ray.get`, where a PerpcsError of the remote side is raised as itself; others keep the remote traceback.

    Raises GetTimeoutError when nothing came within `timeout` seconds.
    """
    import ray

    try:
        return ray.get(reference, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PerpcsError):
            raise error.cause from None
        raise
