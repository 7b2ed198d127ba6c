"""Log lines and progress of remote work, as they happen, to the person at the driver.

A task of ours is a generator: its function runs in a thread, and what it logs and advances is yielded, the
result last (`narrate`, `listen`). Actors that are not ours to run so put their messages on a queue (`telling`, `heard`).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from jobs.terminal import OURS, Advance, progress, relay_progress

END = object()
POLL_S = 0.5
"""Between two looks of the driver at whether the work is over."""


@dataclass(frozen=True, slots=True)
class Line:
    """A log record."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Moved:
    """A progress bar, by its number, and how far it moved; advance None ends it."""

    bar: int
    what: str
    total: int
    advance: int | None


@dataclass(frozen=True, slots=True)
class Result:
    """What the function returned."""

    value: Any


Message = Line | Moved | Result


class _Sender(logging.Handler):
    def __init__(self, send: Callable[[Any], None]) -> None:
        super().__init__(logging.INFO)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self._send(Line(record.name, record.levelno, text))


@contextmanager
def relayed(send: Callable[[Any], None]) -> Iterator[None]:
    """For the block, what our packages log in this process and how far its bars move goes to `send`."""
    sender = _Sender(send)
    loggers = [logging.getLogger(name) for name in OURS]
    for logger in loggers:
        logger.addHandler(sender)
        logger.setLevel(logging.INFO)
    try:
        with relay_progress(lambda *moved: send(Moved(*moved))):
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(sender)


def narrate(fn: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[Message]:
    """Run `fn(*args)` and yield what it logs and advances, then its Result; raises what it raises."""
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outcome: list[Result | BaseException] = []

    def run() -> None:
        try:
            outcome.append(Result(fn(*args)))
        except BaseException as error:
            outcome.append(error)
        finally:
            messages.put(END)

    with relayed(messages.put):
        threading.Thread(target=run, name=getattr(fn, "__name__", "task"), daemon=True).start()
        while (message := messages.get()) is not END:
            yield message
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    yield outcome[0]


def listen(messages: Iterator[Message]) -> Any:
    """At the driver: log, draw, and return the result."""
    with hearing() as hear:
        for message in messages:
            if isinstance(message, Result):
                return message.value
            hear(message)
    raise AssertionError("a narrated function ends with its result or an exception")


@contextmanager
def hearing() -> Iterator[Callable[[Line | Moved], None]]:
    """At the driver: yields what logs a line and draws a bar, for messages of any number of processes."""
    bars: dict[int, tuple[ExitStack, Advance]] = {}

    def hear(message: Line | Moved) -> None:
        if isinstance(message, Line):
            logging.getLogger(message.logger).log(message.level, "%s", message.text)
        else:
            _draw(message, bars)

    try:
        yield hear
    finally:
        for stack, _ in bars.values():
            stack.close()


def _draw(moved: Moved, bars: dict[int, tuple[ExitStack, Advance]]) -> None:
    if moved.advance is None:
        if bar := bars.pop(moved.bar, None):
            bar[0].close()
        return
    if moved.bar not in bars:
        stack = ExitStack()
        bars[moved.bar] = stack, stack.enter_context(progress(moved.what, moved.total))
    bars[moved.bar][1](moved.advance)


@contextmanager
def heard() -> Iterator[Any]:
    """At the driver: a Ray queue, to be given to actors, whose messages a thread logs and draws as they come."""
    import ray
    from ray.util.queue import Empty, Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    news = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1})
    over = threading.Event()

    def follow() -> None:
        with hearing() as hear:
            while True:
                last = over.is_set()
                try:
                    hear(news.get(timeout=POLL_S))
                except Empty:
                    if last:
                        return
                except (
                    ray.exceptions.RayError
                ):  # the queue's process died: what it held is not shown, no more
                    if last:
                        return

    follower = threading.Thread(target=follow, name="news", daemon=True)
    follower.start()
    try:
        yield news
    finally:
        over.set()
        follower.join()
        news.shutdown(force=True)


@contextmanager
def telling(news: Any, who: str) -> Iterator[None]:
    """For the block, what this process logs and advances goes to the queue of `heard`, with `who` before it."""
    import ray

    def send(message: Line | Moved) -> None:
        if isinstance(message, Line):
            message = replace(message, text=f"{who}: {message.text}")
        else:
            message = replace(message, what=f"{who}: {message.what}")
        with suppress(ray.exceptions.RayError):  # work does not end for want of somebody to tell
            news.put_nowait(message)

    with relayed(send):
        yield
