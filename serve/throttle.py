"""Rate and concurrency per token. Pure but for the clock that is passed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Allowance:
    """What one token may do here."""

    per_second: float
    burst: float
    concurrent: int


@dataclass
class _State:
    level: float
    at: float
    running: int = 0


@dataclass(frozen=True)
class Refused:
    """Over a limit."""

    limit: str
    retry_after_s: float


class Throttle:
    """A token bucket and a count of requests under way for each token. For one thread, or one event loop."""

    _MOST = 10_000

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def enter(self, token_id: str, allowed: Allowance, now: float) -> Refused | None:
        """Take part; call `leave` at the end unless it was refused."""
        state = self._states.get(token_id)
        if state is None:
            self._forget_idle(now)
            state = self._states[token_id] = _State(allowed.burst, now)
        state.level = min(allowed.burst, state.level + (now - state.at) * allowed.per_second)
        state.at = now
        if state.running >= allowed.concurrent:
            return Refused("concurrency", 1.0)
        if state.level < 1:
            return Refused("rate", (1 - state.level) / allowed.per_second)
        state.level -= 1
        state.running += 1
        return None

    def leave(self, token_id: str) -> None:
        """One request of the token has ended."""
        self._states[token_id].running -= 1

    def _forget_idle(self, now: float) -> None:
        if len(self._states) >= self._MOST:
            # A bucket is full again within a minute at any sensible rate: it need not be remembered.
            self._states = {
                key: state for key, state in self._states.items() if state.running or now - state.at < 60
            }
