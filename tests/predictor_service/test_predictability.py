"""R = 1 - H(A'|A) / H(A')."""

import math
import random

import pytest

from pbkv_cluster.predictor_service.workflow.situation import END
from pbkv_cluster.predictor_service.workload.predictability import Predictability

PRIOR = 0.1


def entropy(*counts: float) -> float:
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts)


def measured(transitions: list[tuple[str, str]]) -> float:
    found = Predictability()
    for label, successor in transitions:
        found.add_transition(label, successor)
    again = Predictability()
    again.restore(found.dump())  # measures at once
    return again.value


def test_by_hand() -> None:
    # a is followed by b, b by the end: labels are a, b and the end.
    certain = entropy(1 + PRIOR, PRIOR, PRIOR)
    marginal = entropy(1 + PRIOR, 1 + PRIOR, PRIOR)
    assert measured([("a", "b"), ("b", END)]) == pytest.approx(1 - certain / marginal)


def test_weights_are_the_shares_of_states() -> None:
    rows = [("a", "a")] * 3 + [("a", END)] + [("b", END)] * 2
    conditional = (4 * entropy(3 + PRIOR, 1 + PRIOR, PRIOR) + 2 * entropy(2 + PRIOR, PRIOR, PRIOR)) / 6
    assert measured(rows) == pytest.approx(1 - conditional / entropy(3 + PRIOR, 3 + PRIOR, PRIOR))


def test_order_is_predictable_and_chance_is_not() -> None:
    draws = random.Random(1)
    assert measured([("abcd"[at % 4], "abcd"[(at + 1) % 4]) for at in range(400)]) > 0.9
    assert measured([(draws.choice("abcd"), draws.choice("abcd")) for _ in range(4000)]) < 0.02


def test_nothing_known_is_not_predictable() -> None:
    assert Predictability().value == 0.0
    assert measured([]) == 0.0


def test_memory_is_bounded() -> None:
    found = Predictability()
    for at in range(5000):
        found.add_transition(f"a{at}", "x")
        found.add_transition("b", f"x{at % 2000}")
    counts = found.dump()["counts"]
    assert len(counts) <= 2048


@pytest.mark.parametrize(
    "bad", [{}, {"counts": 1}, {"counts": {"a": 1}}, {"counts": {"a": {"b": -1.0}}}, {"counts": {"a": {"b": "1"}}}]
)
def test_damage_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Predictability().restore(bad)
