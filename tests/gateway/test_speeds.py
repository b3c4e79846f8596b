"""The measured prefill speed."""

import pytest

from pbkv_cluster.core.usage import Usage
from pbkv_cluster.gateway.routing.speeds import PrefillSpeed


def test_the_prefill_speed_follows_what_was_measured() -> None:
    speed = PrefillSpeed()
    speed.add(Usage(computed_tokens=100, prefill_s=0.05))
    assert speed.seconds_per_token == pytest.approx(5e-4)
    speed.add(Usage(computed_tokens=1, prefill_s=9.0))
    assert speed.seconds_per_token == pytest.approx(5e-4), "one token measures nothing"
    for _ in range(200):
        speed.add(Usage(computed_tokens=100, prefill_s=0.1))
    assert speed.seconds_per_token == pytest.approx(1e-3)
