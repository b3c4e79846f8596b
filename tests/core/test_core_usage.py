"""Hit accounting: the order of the counts, and rates that always have a denominator."""

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.usage import HitMeter, Tier, Usage

COUNTS = st.dictionaries(st.sampled_from(Tier), st.integers(0, 10_000))
USAGES = st.builds(
    Usage, prompt_tokens=st.integers(0, 40_000), available_tokens=st.integers(0, 40_000), captured=COUNTS, delivered=COUNTS
)


@given(USAGES)
def test_settled_counts_are_in_order(usage: Usage) -> None:
    usage.settle()
    assert sum(usage.delivered.values()) <= sum(usage.captured.values()) <= usage.available_tokens


@given(USAGES)
def test_settling_only_adds_what_is_missing(usage: Usage) -> None:
    before = deepcopy(usage)
    usage.settle()
    assert usage.delivered == before.delivered
    assert usage.prompt_tokens == before.prompt_tokens
    assert all(usage.captured[tier] >= tokens for tier, tokens in before.captured.items())
    given_, had = sum(before.delivered.values()), sum(before.captured.values())
    assert sum(usage.captured.values()) == max(given_, had)
    assert usage.available_tokens == max(before.available_tokens, given_, had)


@given(USAGES)
def test_settling_twice_changes_nothing_more(usage: Usage) -> None:
    usage.settle()
    once = deepcopy(usage)
    usage.settle()
    assert usage == once


def test_counts_in_order_stay_as_they_are() -> None:
    usage = Usage(prompt_tokens=100, available_tokens=90, captured={Tier.HOST: 80}, delivered={Tier.GPU: 60})
    before = deepcopy(usage)
    usage.settle()
    assert usage == before


def test_rates_are_unknown_before_the_first_token() -> None:
    meter = HitMeter()
    meter.add(Usage())
    assert meter.steps == 1
    assert meter.available_rate is None
    assert meter.captured_rate is None
    assert meter.delivered_rate() is None
    assert meter.delivered_rate(Tier.GPU) is None


def test_rates_are_per_prompt_token() -> None:
    meter = HitMeter()
    meter.add(
        Usage(
            prompt_tokens=300,
            available_tokens=240,
            captured={Tier.GPU: 120, Tier.HOST: 60},
            delivered={Tier.GPU: 120, Tier.HOST: 30},
            computed_tokens=150,
            generated_tokens=7,
        )
    )
    meter.add(
        Usage(prompt_tokens=100, available_tokens=60, captured={Tier.GPU: 20}, delivered={Tier.GPU: 10}, computed_tokens=90)
    )
    assert (meter.steps, meter.prompt_tokens, meter.computed_tokens, meter.generated_tokens) == (2, 400, 240, 7)
    assert meter.available_rate == pytest.approx(300 / 400)
    assert meter.captured_rate == pytest.approx(200 / 400)
    assert meter.delivered_rate() == pytest.approx(160 / 400)
    assert meter.delivered_rate(Tier.GPU) == pytest.approx(130 / 400)
    assert meter.delivered_rate(Tier.HOST) == pytest.approx(30 / 400)
    assert meter.delivered_rate(Tier.DISK) == 0


@given(st.lists(USAGES, max_size=5))
def test_the_meter_keeps_no_part_of_a_usage(usages: list[Usage]) -> None:
    meter = HitMeter()
    for usage in usages:
        meter.add(usage)
    total = deepcopy(meter)
    for usage in usages:
        usage.captured.clear()
        usage.delivered.clear()
    assert meter == total
