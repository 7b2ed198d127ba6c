"""What a remote function logs and advances reaches the driver as it happens."""

import logging

import pytest

from jobs import terminal
from jobs.relay import Line, Moved, Result, heard, listen, narrate, telling
from jobs.runtime import run_remote
from jobs.terminal import progress
from perpcs.config.schema import RayConfig

log = logging.getLogger("perpcs.some.module")


def count(n):
    with progress("steps", total=n) as advance:
        for _ in range(n):
            advance(1)
        log.info("counted %d", n)
    return n


def fail():
    log.warning("about to fail")
    raise KeyError("x")


def test_messages_in_order_and_the_result_last(monkeypatch):
    monkeypatch.setattr(terminal, "RELAY_S", -1.0)
    messages = list(narrate(count, (2,)))
    moves = [m.advance for m in messages if isinstance(m, Moved)]
    assert moves == [0, 1, 1, None]
    assert messages[-2:] == [Moved(messages[0].bar, "steps", 2, None), Result(2)]
    assert Line("perpcs.some.module", logging.INFO, "counted 2") in messages


def test_bars_are_sent_seldom():
    messages = list(narrate(count, (1000,)))
    assert len(messages) < 10


def test_what_it_raises_comes_after_what_it_said():
    messages = narrate(fail, ())
    assert next(messages).text == "about to fail"
    with pytest.raises(KeyError):
        next(messages)


def test_the_driver_logs_draws_and_returns(caplog, monkeypatch):
    drawn = []

    class Bar:
        def __init__(self, what, total):
            drawn.append((what, total))

        def __enter__(self):
            return drawn.append

        def __exit__(self, *_):
            drawn.append("closed")

    monkeypatch.setattr("jobs.relay.progress", Bar)
    moves = [Moved(7, "steps", 4, 1), Moved(7, "steps", 4, 2), Moved(7, "steps", 4, None)]
    with caplog.at_level(logging.INFO):
        assert listen(iter([*moves, Line("jobs.x", logging.INFO, "50 % done"), Result("value")])) == "value"
    assert drawn == [("steps", 4), 1, 2, "closed"]
    assert caplog.messages == ["50 % done"]


def test_through_a_real_task(local_ray, caplog):
    with caplog.at_level(logging.INFO):
        assert run_remote(count, 3, cfg=RayConfig()) == 3
    assert "counted 3" in caplog.messages


def tell(news, who):
    with telling(news, who):
        count(3)


def test_actors_that_run_side_by_side_are_heard_with_their_names(local_ray, caplog, monkeypatch):
    drawn = []
    monkeypatch.setattr("jobs.relay._draw", lambda moved, bars: drawn.append((moved.bar, moved.what)))
    with caplog.at_level(logging.INFO), heard() as news:
        local_ray.get([local_ray.remote(tell).remote(news, who) for who in ("one", "two")])
    assert sorted(caplog.messages) == ["one: counted 3", "two: counted 3"]
    assert {what for _, what in drawn} == {"one: steps", "two: steps"}
    assert len({bar for bar, _ in drawn}) == 2, "each process's bars have numbers of their own"
