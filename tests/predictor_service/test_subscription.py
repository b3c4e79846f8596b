"""Forecasts that wait for one receiver."""

import gc
import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.predictor_service.broadcast import subscription
from pbkv_cluster.predictor_service.broadcast.subscription import Offer, Subscription


def subscribed(limit: int = 1000) -> Subscription:
    return Subscription("reader", limit, lambda _: Forecasts.of([]), lambda _: None)


def batch(epoch: int, workflows: Sequence[int]) -> Forecasts:
    steps = (StepForecast({f"agent-{epoch}": 0.5, "other": 0.25}, 0.75),)
    return Forecasts.of([Forecast(f"w{number}", epoch, float(epoch), steps) for number in workflows])


OFFER = st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6, unique_by=lambda each: each[0])
OFFERS = st.lists(OFFER, max_size=30)


@given(OFFERS, st.sets(st.integers(0, 29)), st.sampled_from([0, 3, 1000]))
async def test_the_newest_of_each_workflow_is_read_once(
    offers: list[list[tuple[int, bool]]], reads: set[int], max_replaced: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subscription, "MAX_REPLACED", max_replaced)
        reader, waiting = subscribed(), dict[str, Forecast]()
        assert (await anext(reader)).snapshot
        for epoch, offer in enumerate(offers):
            offered = batch(epoch, [number for number, _ in offer])
            wanted = [at for at, (_, is_wanted) in enumerate(offer) if is_wanted]
            assert reader.offer(offered, wanted) is Offer.QUEUED
            waiting.update((offered[at].workflow, offered[at]) for at in wanted)
            if epoch in reads and waiting:
                assert {each.workflow: each for each in (await anext(reader)).forecasts} == waiting
                waiting = {}
        if waiting:
            assert {each.workflow: each for each in (await anext(reader)).forecasts} == waiting


async def test_replaced_forecasts_leave_although_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "MAX_REPLACED", 100)
    reader = subscribed()
    await anext(reader)
    alive = []
    for epoch in range(50):  # one forecast of each batch stays the newest of its workflow
        offered = batch(epoch, [*range(20), 1000 + epoch])
        alive.append(weakref.ref(offered.agent_positions))
        reader.offer(offered, range(21))
    del offered
    gc.collect()
    assert sum(each() is not None for each in alive) < 10
    left = (await anext(reader)).forecasts
    assert len(left) == 70
    assert len(left.agent_names) <= 53  # one of each epoch, and "other"


async def test_names_leave_with_the_forecasts_that_named_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "MAX_REPLACED", 10)
    reader = subscribed()
    await anext(reader)
    for epoch in range(500):
        reader.offer(batch(epoch, [0] if epoch else [0, 1]), range(1 + (epoch == 0)))
    left = (await anext(reader)).forecasts
    assert len(left) == 2
    assert len(left.agent_names) < 30
