"""Sampling parameters: every invalid value is refused with its name on the wire."""

import math
from typing import Any

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.sampling import MAX_STOP_STRINGS, SamplingOptions, SamplingParams
from pbkv_cluster.core.tokens import pack

NAN = math.nan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("max_tokens", value) for value in (0, -1, 2**31)],
        *[("temperature", value) for value in (-0.1, 100.1, NAN, math.inf, -math.inf)],
        *[("top_p", value) for value in (0.0, -0.5, 1.0001, NAN, math.inf)],
        *[("seed", value) for value in (-1, 2**64)],
        *[("stop", value) for value in (("a",) * (MAX_STOP_STRINGS + 1), ("a", ""))],
        *[("forced_output", value) for value in (b"", b"abc", b"abcde")],
    ],
)
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=rf"^sampling\.{field}: ") as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == f"sampling.{field}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("max_tokens", value) for value in (1, 2**31 - 1)],
        *[("temperature", value) for value in (0.0, 100.0)],
        *[("top_p", value) for value in (1e-6, 1.0)],
        *[("seed", value) for value in (0, 2**64 - 1)],
        *[("stop", value) for value in ((), ("a",) * MAX_STOP_STRINGS)],
        ("forced_output", pack([7])),
    ],
)
def test_limits_themselves_are_allowed(field: str, value: Any) -> None:
    assert getattr(SamplingParams(**{field: value}), field) == value


def test_what_a_client_leaves_out_takes_its_default_and_a_drawn_seed() -> None:
    assert SamplingOptions(seed=4).complete() == SamplingParams(seed=4)
    given: dict[str, Any] = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.25, "seed": 0, "stop": ("a",), "ignore_eos": True}
    assert SamplingOptions(**given, forced_output=pack([7])).complete() == SamplingParams(**given, forced_output=pack([7]))
    assert len({SamplingOptions().complete().seed for _ in range(4)}) == 4
    with pytest.raises(InvalidArgument, match=r"^sampling\.max_tokens: "):
        SamplingOptions(max_tokens=0).complete()
