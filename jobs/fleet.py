"""The training fleet: N workers that push any number of users through, none lost, none done twice.

Start at `run_fleet`. The workers run `jobs.fleet_worker.work` and differ only in who keeps them alive: a
Ray Train worker group whose replicas are independent (`ray.fleet: train`), or plain Ray actors
(`actors`). Either replaces a dead worker alone, while the others go on. Who trains whom is decided in
`jobs.coordinator`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from jobs.coordinator import Coordinator, one_line
from jobs.fleet_types import FleetEvent, FleetReport, News, PackWorker, Plan
from jobs.fleet_worker import work
from jobs.metrics import FleetMetrics
from jobs.runtime import as_worker, connect, fetch, runs_here
from perpcs.config.schema import RayConfig
from perpcs.errors import PerpcsError

POLL_S = 0.25
"""Between two looks of the driver at the news."""
SILENCE_S = 900.0
"""The coordinator answers at once, but for its first start, which may have to install a runtime environment."""
PATIENCE_S = 30.0
"""Without any worker running, after which the log says what is waited for."""


class Crew(Protocol):
    """The running worker processes."""

    def running(self) -> bool:
        """Whether any still runs; raises what ended them when that was no failure of a pack."""

    def close(self) -> None:
        """Let go of them: they have ended, or were told to stop and do so after the pack they have in work."""


def run_fleet(
    make_worker: Callable[[], PackWorker],
    *,
    todo: Callable[[], Sequence[str]],
    pack: int,
    cfg: RayConfig,
    on_event: Callable[[FleetEvent], None],
    stage: str = "fleet",
) -> FleetReport:
    """Train and commit all users of `todo()`; returns at once, without Ray, when there are none.

    make_worker: called once in every worker process; loads the base. todo: reads the store and returns
    the users that are selected and not committed; called here and in the coordinator, so it must pickle.
    pack: most users in one `PackWorker.run`. on_event: called in this thread for everything worth a log
    line. stage: tag of the metrics.

    A failing user is retried and then reported in `FleetReport.failed`; it never ends the fleet. Raises
    what made training impossible altogether: a PerpcsError of `make_worker`, a pool that does not match,
    a full disk.
    """
    users = tuple(todo())
    if not users:
        return FleetReport()
    started = time.monotonic()
    workers = min(cfg.workers, len(users))
    plan = Plan(total=len(users), pack=pack, workers=workers, retries=cfg.retries, stage=stage)
    if runs_here(cfg):
        as_worker(cfg)
        return _by_itself(users, make_worker, plan=plan, todo=todo, on_event=on_event)
    with _told(plan, on_event), connect(cfg):
        coordinator = _start_coordinator(todo, plan)
        crew = _start_crew(coordinator, make_worker, plan, cfg)
        try:
            news = _follow(coordinator, crew, plan, on_event)
        finally:
            # Not awaited: on Ctrl-C nothing may answer any more. The actor ends when the last worker let
            # go of it.
            coordinator.dismiss.remote()
            crew.close()
    if news.error is not None:
        raise news.error
    return _account(users, todo(), news.failed, seconds=time.monotonic() - started, workers=plan.workers)


@contextmanager
def _told(plan: Plan, on_event: Callable[[FleetEvent], None]) -> Iterator[None]:
    """The driver's own two events; without the second, the driver was killed."""
    where = f"driver on {socket.gethostname()}, process {os.getpid()}"
    on_event(FleetEvent("began", f"{where}: {plan.total} users for {plan.workers} workers", total=plan.total))
    try:
        yield
    except BaseException as error:
        on_event(FleetEvent("ended", f"{where} stops: {one_line(error)}", total=plan.total))
        raise
    on_event(FleetEvent("ended", f"{where} has no more to do", total=plan.total))


def _by_itself(
    users: Sequence[str],
    make_worker: Callable[[], PackWorker],
    *,
    plan: Plan,
    todo: Callable[[], Sequence[str]],
    on_event: Callable[[FleetEvent], None],
) -> FleetReport:
    """A fleet of one in this process, whose death is somebody else's to notice."""
    started = time.monotonic()
    desk = Coordinator(todo, replace(plan, workers=1))
    with _told(plan, on_event):
        work(desk, "0", make_worker, beat_s=plan.beat_s)
        news = desk.news(("", 0))
        for event in news.events:
            on_event(event)
    if news.error is not None:
        raise news.error
    return _account(users, todo(), news.failed, seconds=time.monotonic() - started, workers=1)


class RemoteDesk:
    """A handle to the coordinator's actor. Calls wait for the answer, through its restarts, but no longer than
    `patience_s`, if that is given: then they raise PerpcsError."""

    def __init__(self, actor: Any, *, patience_s: float | None = None) -> None:
        self._actor, self._patience_s = actor, patience_s

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args: self._ask(name, *args)

    def _ask(self, name: str, *args: Any) -> Any:
        from ray.exceptions import GetTimeoutError

        try:
            return fetch(getattr(self._actor, name).remote(*args), timeout=self._patience_s)
        except GetTimeoutError as error:
            raise PerpcsError(
                f"the fleet's coordinator has not answered for {self._patience_s:.0f} s: Ray lost it, or the word that it "
                "is there; what is committed stays, run the same command again"
            ) from error


class _CoordinatorActor(Coordinator):
    def __init__(self, todo: Callable[[], Sequence[str]], plan: Plan) -> None:
        import ray

        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        super().__init__(todo, plan, restarted=restarted, on_event=FleetMetrics(plan.stage).record)


def _start_coordinator(todo: Callable[[], Sequence[str]], plan: Plan) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Beside the driver, whose node is the one that must not die; it needs no CPU of its own.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(**options)(_CoordinatorActor).remote(todo, plan)


def _start_crew(coordinator: Any, make_worker: Callable[[], PackWorker], plan: Plan, cfg: RayConfig) -> Crew:
    # Imported here: either brings in parts of Ray that the other does not need.
    if cfg.fleet == "train":
        from jobs.crew_train import TrainCrew

        return TrainCrew(RemoteDesk(coordinator), make_worker, plan=plan, cfg=cfg)
    from jobs.crew_actors import ActorCrew

    return ActorCrew(RemoteDesk(coordinator), make_worker, plan=plan, cfg=cfg)


def _follow(coordinator: Any, crew: Crew, plan: Plan, on_event: Callable[[FleetEvent], None]) -> News:
    """Pass on the news until the crew has ended; returns the last."""
    desk = RemoteDesk(coordinator, patience_s=SILENCE_S)
    news: News = desk.news(("", 0))
    workers_seen, last_sign = False, time.monotonic()
    while True:
        # Asked before the news are fetched, so that the last news are complete.
        over = not crew.running()
        news = desk.news(news.cursor)
        for event in news.events:
            workers_seen = True
            on_event(event)
        if over:
            return news
        if not workers_seen and time.monotonic() - last_sign > PATIENCE_S:
            last_sign = time.monotonic()
            on_event(FleetEvent("waiting", _waiting_text(plan), total=plan.total))
        time.sleep(POLL_S)


def _waiting_text(plan: Plan) -> str:
    import ray

    free = ray.available_resources()
    return (
        f"waiting for room to start {plan.workers} workers; free now: "
        f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
    )


def _account(
    asked: Sequence[str], left: Sequence[str], failed: dict[str, str], *, seconds: float, workers: int
) -> FleetReport:
    """What the store says: done is what it holds now, whatever workers reported."""
    missing = set(left)
    unexplained = "its worker reported it as trained, but the store does not hold it"
    return FleetReport(
        done=tuple(user for user in asked if user not in missing),
        failed={user: failed.get(user, unexplained) for user in asked if user in missing},
        seconds=seconds,
        workers=workers,
    )
