"""The eviction order for SGLang's prefix tree."""

import math
from dataclasses import dataclass

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.integrations.sglang.aged_uses import AgedUses


@dataclass(eq=False)
class Node:
    """A node as SGLang counts its uses."""

    hit_count: int = 0
    last_access_time: float = 0.0

    def use(self, now: float, times: int = 1) -> "Node":
        self.hit_count += times
        self.last_access_time = now
        return self


def test_of_equally_old_nodes_the_one_used_more_stays() -> None:
    order = AgedUses(100.0)
    once, twice = Node().use(5.0), Node().use(5.0, times=2)
    assert order.value(once) < order.value(twice)


def test_an_old_use_counts_less_than_a_new_one() -> None:
    order = AgedUses(10.0)
    old, new = Node().use(0.0, times=3), Node().use(100.0)
    assert order.value(old) < order.value(new)


def test_uses_add_up_over_rankings_and_between_them_nothing_changes() -> None:
    order, node = AgedUses(10.0), Node()
    first = order.value(node)
    assert order.value(node) == first
    assert order.value(node.use(10.0)) == pytest.approx(math.log2(2.0**0 + 2.0**1))
    assert order.value(node.use(20.0, times=2)) == pytest.approx(math.log2(1.0 + 2.0 + 4.0 + 4.0))


def test_nodes_that_are_gone_take_no_memory() -> None:
    order = AgedUses(10.0)
    for at in range(100):
        order.value(Node().use(float(at)))
    assert order.known == 0


@pytest.mark.parametrize("half_life", [0.0, -1.0, math.inf, math.nan, True])
def test_a_half_life_must_be_a_positive_number(half_life: float) -> None:
    with pytest.raises(InvalidArgument, match="half_life_s: must be a positive number of seconds"):
        AgedUses(half_life)
