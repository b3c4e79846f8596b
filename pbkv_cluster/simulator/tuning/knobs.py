"""The settings worth tuning, by the policy or predictor that reads them. A new one is a line in a table here."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.config.sources import value_of

Value = float | int | str
Values = Mapping[str, Value]
"""Values of configuration fields, by their paths."""

_DIGITS = 3  # significant digits of a value; more would make no difference to a run


@dataclass(frozen=True, slots=True)
class Linear:
    """A number whose differences matter: spread evenly from `low` to `high`."""

    field: str  # path in the configuration
    low: float
    high: float
    whole: bool = False

    def at(self, position: float) -> Value:
        """The value at a position, from 0 to 1."""
        return _rounded(self.low + position * (self.high - self.low), self.whole)


@dataclass(frozen=True, slots=True)
class Log:
    """A number whose ratios matter: spread evenly in its logarithm."""

    field: str
    low: float
    high: float
    whole: bool = False

    def at(self, position: float) -> Value:
        """The value at a position, from 0 to 1."""
        return _rounded(self.low * (self.high / self.low) ** position, self.whole)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values that have no order."""

    field: str
    values: tuple[Value, ...]

    def at(self, position: float) -> Value:
        """The value at a position, from 0 to 1."""
        return self.values[min(int(position * len(self.values)), len(self.values) - 1)]


Knob = Linear | Log | Choice


class _Tunable(NamedTuple):
    knobs: tuple[Knob, ...] = ()
    forecasts: bool = False  # whether the policy uses forecasts, so that the predictor's knobs matter


_POLICIES: Mapping[str, _Tunable] = {
    "lru": _Tunable(),
    "retired-lru": _Tunable(),
    "lfu": _Tunable((Log("cache.lfu_half_life_s", 20, 20_000),)),
    "kvflow": _Tunable(forecasts=True),
    "continuum": _Tunable((Log("cache.continuum_benefit_s", 1, 1000),)),
    "pbkv-paper": _Tunable((Linear("cache.gamma", 0.2, 1.0), Log("cache.forecast_half_life_s", 5, 2000)), forecasts=True),
    "pbkv": _Tunable((Log("cache.hit_overhead", 0.1, 20), Log("cache.shared_prior", 0.0001, 0.1)), forecasts=True),
}
_PREDICTORS: Mapping[str, tuple[Knob, ...]] = {
    "markov": (Log("predictor.smoothing", 0.01, 3), Linear("predictor.horizon", 1, 6, whole=True)),
    "mixture": (Linear("predictor.horizon", 1, 6, whole=True),),
}


def knobs_of(policy: str, predictor: str) -> tuple[Knob, ...]:
    """The knobs of a policy and a predictor. A policy that is not in the table has none; the predictor's count for it."""
    own = _POLICIES.get(policy, _Tunable(forecasts=True))
    return own.knobs + (_PREDICTORS.get(predictor, ()) if own.forecasts else ())


def all_knobs() -> Iterator[Knob]:
    """Every knob of every policy and predictor."""
    for tunable in _POLICIES.values():
        yield from tunable.knobs
    for knobs in _PREDICTORS.values():
        yield from knobs


def spread(knobs: Sequence[Knob], count: int, draws: Random) -> Iterator[Values]:
    """`count` settings of some knobs as a Latin hypercube: each knob alone takes `count` values at equal distances."""
    columns = []
    for _ in knobs:
        column = list(range(count))
        draws.shuffle(column)
        columns.append(column)
    for number in range(count):
        yield {knob.field: knob.at((column[number] + 0.5) / count) for knob, column in zip(knobs, columns, strict=True)}


def with_values(config: Config, values: Values) -> Config:
    """The configuration with some fields set.

    Raises:
        ValueError: a value is out of its field's range.
    """
    tree = config.model_dump()
    for path, value in values.items():
        section, name = path.split(".")
        tree[section][name] = value
    return Config.model_validate(tree)


def values_of(config: Config, policy: str, knobs: Sequence[Knob]) -> Values:
    """A policy, and the values that a configuration has for its knobs."""
    return {"cache.policy": policy, **{knob.field: value_of(config, knob.field) for knob in knobs}}


def _rounded(value: float, whole: bool) -> Value:
    if whole:
        return round(value)
    return round(value, _DIGITS - 1 - math.floor(math.log10(abs(value)))) if value else 0.0
