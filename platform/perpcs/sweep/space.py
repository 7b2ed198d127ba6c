"""What a sweep varies: axes over any config key, and the method; every point of a grid, or seeded draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perpcs.errors import ConfigError
from perpcs.seeds import rng

METHOD = "method"
"""The axis that is no config key: which row of `evaluate.methods` is evaluated."""
RANGE = {"low", "high", "log"}

Values = dict[str, Any]
"""One point of the space: key -> value."""


@dataclass(frozen=True)
class Axis:
    """One varied key: either some `values`, or a range from `low` to `high`, both included."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Draw from the range evenly on a logarithmic scale."""
    whole: bool = False
    """Draw whole numbers."""

    @property
    def is_range(self) -> bool:
        """Whether it has no list of values."""
        return not self.values

    def ends(self) -> tuple[Any, ...]:
        """The values that have to be possible for all others to be."""
        if self.values:
            return self.values
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def draw(self, uniform: float) -> Any:
        """The value at a place in [0, 1)."""
        if self.values:
            return self.values[int(uniform * len(self.values))]
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if not self.whole:
            value = low + uniform * (high - low)
            return math.exp(value) if self.log else value
        if self.log:
            return min(int(self.high), round(math.exp(low + uniform * (high - low))))
        return int(self.low + math.floor(uniform * (self.high - self.low + 1)))


def read_axis(key: str, raw: Any, *, whole: bool, origin: str) -> Axis:
    """An axis as the file gives it: a list, or `{low: …, high: …, log: true}`. Raises ConfigError otherwise."""
    place = f"{origin}: sweep.space.{key}"
    if isinstance(raw, Mapping):
        return _read_range(key, raw, whole=whole, place=place)
    if not isinstance(raw, list | tuple) or not raw:
        raise ConfigError(f"{place}: {raw!r} is no list of values; write [a, b], or {{low: a, high: b}}")
    values = tuple(tuple(value) if isinstance(value, list) else value for value in raw)
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ConfigError(f"{place}: {twice[0]!r} is named twice; name it once")
    return Axis(key, values)


def _read_range(key: str, raw: Mapping[str, Any], *, whole: bool, place: str) -> Axis:
    if unknown := set(raw) - RANGE:
        raise ConfigError(f"{place}: {min(unknown)}: no such key of a range; use low, high and log")
    low, high, log = raw.get("low"), raw.get("high"), raw.get("log", False)
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{place}.{name}: {value!r} is not a number; give both low and high")
    assert isinstance(low, int | float) and isinstance(high, int | float)
    if not low < high:
        raise ConfigError(f"{place}: low {low} is not below high {high}")
    if log is not True and log is not False:
        raise ConfigError(f"{place}.log: {log!r} is not true or false")
    if log and low <= 0:
        raise ConfigError(f"{place}: low {low} must be above 0 where log is true")
    return Axis(key, low=float(low), high=float(high), log=log, whole=whole)


def grid(axes: Sequence[Axis]) -> Iterator[Values]:
    """Every combination, the last axis fastest. Raises ConfigError for an axis without a list of values."""
    for axis in axes:
        if axis.is_range:
            raise ConfigError(
                f"sweep.space.{axis.key}: a grid needs a list of values; or use sweep.search=random"
            )
    for values in itertools.product(*(axis.values for axis in axes)):
        yield dict(zip((axis.key for axis in axes), values, strict=True))


def draws(axes: Sequence[Axis], *, count: int, seed: int) -> Iterator[Values]:
    """`count` random points; the first of more are the same."""
    for number in range(count):
        yield {axis.key: axis.draw(float(rng(seed, "sweep", number, axis.key).random())) for axis in axes}
