"""Measured speeds and lengths."""

import pytest

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.load_speeds import LoadSpeed, LoadSpeeds
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.gateway.routing.speeds import LoadingCost, OutputLength, PrefillSpeed, StepSpeed


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


def test_a_load_costs_what_could_be_computed_meanwhile() -> None:
    clock = ManualClock()
    cost = LoadingCost(clock)
    assumed = cost.tokens(Tier.REMOTE, 100)
    assert 0 < assumed < 100, "nothing is measured"
    cost.measured(LoadSpeeds(1e-3, {Tier.HOST: LoadSpeed(1e-4, 0.05)}))
    assert cost.tokens(Tier.HOST, 100) == pytest.approx(60), "0.05 s for those before it, 0.01 s for itself"
    assert cost.tokens(Tier.REMOTE, 100) == assumed, "nothing has been loaded from there"
    clock.advance(0.02)
    assert cost.tokens(Tier.HOST, 100) == pytest.approx(40), "so much later, the queue is shorter"
    clock.advance(60.0)
    assert cost.tokens(Tier.HOST, 100) == pytest.approx(10)
    cost.measured(LoadSpeeds(2e-3, {Tier.HOST: LoadSpeed(1e-4, 0.0), Tier.REMOTE: LoadSpeed(4e-3, 0.0)}))
    assert cost.tokens(Tier.HOST, 100) == pytest.approx(5), "by the speed of the worker's own prefill"
    assert cost.tokens(Tier.REMOTE, 100) == pytest.approx(200)
