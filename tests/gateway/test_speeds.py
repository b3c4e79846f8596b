"""Measured speeds and lengths."""

import pytest

from pbkv_cluster.core.usage import Usage
from pbkv_cluster.gateway.routing.speeds import OutputLength, PrefillSpeed, StepSpeed


def test_the_prefill_speed_follows_what_was_measured() -> None:
    speed = PrefillSpeed()
    speed.add(Usage(computed_tokens=100, prefill_s=0.05))
    assert speed.seconds_per_token == pytest.approx(5e-4)
    speed.add(Usage(computed_tokens=1, prefill_s=9.0))
    assert speed.seconds_per_token == pytest.approx(5e-4), "one token measures nothing"
    for _ in range(200):
        speed.add(Usage(computed_tokens=100, prefill_s=0.1))
    assert speed.seconds_per_token == pytest.approx(1e-3)


def test_the_speed_of_steps_is_unknown_until_one_has_ended() -> None:
    speed = StepSpeed()
    assert speed.seconds_per_token is None
    speed.add(Usage(computed_tokens=0, generated_tokens=0))
    assert speed.seconds_per_token is None, "a step that did nothing measures nothing"
    speed.add(Usage(computed_tokens=900, generated_tokens=100, prefill_s=0.5, decode_s=1.5, queue_s=60.0))
    assert speed.seconds_per_token == pytest.approx(2e-3), "time in the queue is not the step's own"


def test_an_output_is_expected_to_be_as_long_as_others_were() -> None:
    lengths = OutputLength()
    assert lengths.expected(500) == 500, "nothing is known: all that it may be"
    lengths.add(Usage(generated_tokens=40))
    assert (lengths.expected(500), lengths.expected(8)) == (40, 8)
