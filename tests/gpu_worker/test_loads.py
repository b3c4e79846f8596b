"""Which sequences may be in one batch before their blocks have arrived."""

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from pbkv_cluster.gpu_worker.engine.loads import Loads

BATCH_S = 0.02


class Waiting:
    """A cache none of whose handles is ready. A handle is the seconds that it takes until then; None: it comes whole."""

    def is_ready(self, handle: float | None) -> bool:
        return False

    def seconds_left(self, handle: float | None) -> float | None:
        return handle


def batch(*left: float) -> list[float]:
    """The sequences that a batch takes which would be empty without them."""
    cache: Any = Waiting()
    loads = Loads(cache, lambda tokens: BATCH_S, Counter())
    late: list[Any] = [SimpleNamespace(handle=each) for each in left]
    stall = loads.soonest(late)
    return [sequence.handle for sequence in late if loads.allow(sequence, 100, stall)]


@pytest.mark.parametrize(
    ("left", "taken"),
    [
        ((0.01, 0.5, math.inf), [0.01]),
        ((0.5, 0.015, 0.01), [0.015, 0.01]),
        ((0.5, 0.3, 0.4), [0.3]),
        ((math.inf, 0.3), [0.3]),
        ((math.inf,), [math.inf]),
    ],
)
def test_a_batch_that_waits_does_so_for_the_shortest_load(left: tuple[float, ...], taken: list[float]) -> None:
    assert batch(*left) == taken


@pytest.mark.parametrize(("left", "allowed"), [(BATCH_S, True), (0.03, False), (math.inf, False)])
def test_a_batch_of_others_waits_for_no_load(left: float, allowed: bool) -> None:
    cache: Any = Waiting()
    late: Any = SimpleNamespace(handle=left)
    assert Loads(cache, lambda tokens: BATCH_S, Counter()).allow(late, 100) is allowed
