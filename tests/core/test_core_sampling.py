"""Sampling parameters: every invalid value is refused with its name on the wire."""

import math
from typing import Any

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.sampling import MAX_STOP_STRINGS, SamplingParams
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
