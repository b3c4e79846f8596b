"""Checks of fields: what passes, and the message of what does not."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (checks.text_bytes, ("é" * 4, 8)),
        (checks.name, ("",)),
        (checks.name, ("n" * checks.MAX_NAME_BYTES,)),
        (checks.required_name, ("n",)),
        (checks.count, (0, 0)),
        (checks.count, (7, 7)),
        (checks.in_range, (1, 1, 2)),
        (checks.in_range, (2, 1, 2)),
        (checks.seconds, (0.0,)),
        (checks.seconds, (1e300,)),
        (checks.seconds, (3.0, 3.0)),
        (checks.share, (1e-300,)),
        (checks.share, (1.0,)),
    ],
)
def test_a_value_within_bounds_is_returned(check: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    assert check("field", *arguments) == arguments[0]


@pytest.mark.parametrize(
    ("check", "arguments", "problem"),
    [
        (checks.not_empty, ([],), "must not be empty"),
        (checks.text_bytes, ("é" * 5, 8), "at most 8 bytes, got 10"),
        (checks.text_bytes, ("\ud800", 8), "is not valid Unicode"),
        (checks.name, ("é" * 129,), "at most 256 bytes, got 258"),
        (checks.required_name, ("",), "must not be empty"),
        (checks.required_name, ("n" * 257,), "at most 256 bytes, got 257"),
        (checks.count, (8, 7), "must be at most 7, got 8"),
        (checks.in_range, (0, 1, 2), "must be from 1 to 2, got 0"),
        (checks.in_range, (3, 1, 2), "must be from 1 to 2, got 3"),
        (checks.seconds, (-0.5,), "must be a finite number of seconds, at least 0, got -0.5"),
        (checks.seconds, (math.nan,), "must be a finite number of seconds, at least 0, got nan"),
        (checks.seconds, (math.inf,), "must be a finite number of seconds, at least 0, got inf"),
        (checks.seconds, (4.0, 3.0), "must be a finite number of seconds, at least 0 and at most 3, got 4"),
        (checks.share, (0.0,), "must be above 0 and at most 1, got 0.0"),
        (checks.share, (1.5,), "must be above 0 and at most 1, got 1.5"),
        (checks.share, (math.nan,), "must be above 0 and at most 1, got nan"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_the_name_of_its_field(
    check: Callable[..., Any], arguments: tuple[Any, ...], problem: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check("some.field", *arguments)
    assert (refused.value.field, refused.value.problem) == ("some.field", problem)
