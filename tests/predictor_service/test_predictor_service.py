"""The plain service: order of events, epochs, leases, and subscribers that do not affect each other."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.clock import ManualClock, SystemClock
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument, ResourceExhausted, Unavailable
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.broadcast import broadcaster
from pbkv_cluster.predictor_service.broadcast.subscription import Batch, Subscription
from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor
from pbkv_cluster.predictor_service.service import PredictorService, Reported
from tests.polling import eventually

START, STEP, END = EventKind.WORKFLOW_STARTED, EventKind.STEP_STARTED, EventKind.WORKFLOW_ENDED


def event(kind: EventKind, workflow: str = "w", sequence: int = 0, agent: str = "", time: float | None = None) -> WorkflowEvent:
    stamp = float(sequence) if time is None else time
    return WorkflowEvent(kind, workflow, sequence, stamp, "app", agent or ("a" if kind is STEP else ""))


def placed(worker: str, workflow: str = "w", sequence: int = 0) -> WorkflowEvent:
    return WorkflowEvent(EventKind.STEP_PLACED, workflow, sequence, float(sequence), worker=worker)


def workflow(name: str, agents: str, *, ends: bool = True) -> list[WorkflowEvent]:
    events = [event(START, name), *(event(STEP, name, at, agent) for at, agent in enumerate(agents, 1))]
    return [*events, event(END, name, len(events))] if ends else events


def make(clock: ManualClock | None = None, queue: int = 1024, **limits: float) -> PredictorService:
    return PredictorService(PredictorConfig(subscriber_queue=queue), clock or ManualClock(1000.0), **limits)  # type: ignore[arg-type]


async def take(subscription: Subscription) -> Batch:
    """The batch that waits; fails if there is none."""
    async with asyncio.timeout(10):
        return await anext(subscription)


def names(batch: Batch) -> set[str]:
    return {forecast.workflow for forecast in batch.forecasts}


def test_duplicates_and_late_events_are_ignored() -> None:
    service = make()
    events = workflow("w", "abc", ends=False)
    assert service.report(events) == Reported(4, 0)
    learnt = service.predictor.dump()
    assert service.report(events) == Reported(0, 4)
    assert service.report([events[2]]) == Reported(0, 1)
    assert service.predictor.dump() == learnt


def test_reordered_events_do_not_teach_a_wrong_order() -> None:
    service = make()
    start, a, b, c = workflow("w", "abc", ends=False)
    assert service.report([start, a, c, b]) == Reported(3, 1)
    whole = make()
    whole.report([start, a, c])
    assert service.predictor.dump() == whole.predictor.dump()


def test_gaps_are_tolerated() -> None:
    service = make()
    assert service.report([event(STEP, sequence=3, agent="a"), event(STEP, sequence=9, agent="b")]) == Reported(2, 0)
    assert [forecast.workflow for forecast in service.predict(["w"])] == ["w"]


def test_events_after_the_end_are_ignored_until_it_is_forgotten() -> None:
    service = make(max_ended=2)
    service.report(workflow("w", "ab"))
    assert service.report([event(STEP, sequence=9)]) == Reported(0, 1)
    assert service.predict(["w"])[0].ended
    service.report([event(END, "x"), event(END, "y")])
    assert not service.predict(["w"])
    assert service.report([event(STEP, sequence=9)]) == Reported(1, 0)


def test_a_repeated_end_is_ignored() -> None:
    service = make()
    assert service.report([event(END), event(END)]) == Reported(1, 1)
    assert service.open_workflows == 0


def test_an_id_may_be_used_again() -> None:
    service = make()
    service.report(workflow("w", "ab"))
    assert service.report([event(START, time=0.0)]) == Reported(0, 1)  # a duplicate carries its old stamp
    assert service.report([event(START, time=50.0), event(STEP, sequence=1, time=51.0)]) == Reported(2, 0)
    # The same if the end was lost.
    assert service.report([event(START, time=60.0), event(STEP, sequence=1, time=61.0)]) == Reported(2, 0)
    assert service.open_workflows == 1


def test_an_id_that_is_used_again_starts_from_the_start() -> None:
    service = make()
    for name in ("v", "x", "w"):  # agents that several workflows call are known by their names
        service.report([event(START, name), event(STEP, name, 1, "a"), event(STEP, name, 2, "z")])
    for time in (50.0, 60.0, 70.0, 80.0, 90.0, 100.0):
        service.report([event(START, time=time), *(event(STEP, sequence=at, agent="z", time=time) for at in (1, 2, 3))])
    service.report([event(START, "new")])
    service.predictor.learn()
    assert service.predict(["new"])[0].steps[0].agents["z"] > 0.5


def test_an_id_that_is_used_again_may_be_silent_too() -> None:
    clock = ManualClock(1000.0)
    service = make(clock, lease_s=60.0)
    service.report([*workflow("w", "a"), event(START, time=50.0)])
    clock.advance(61.0)
    assert service.flush() == 0  # there are no subscribers
    assert service.open_workflows == 0
    assert service.report([event(STEP, sequence=1, time=120.0)]) == Reported(1, 0)


def test_without_subscribers_nothing_is_forecast() -> None:
    service = make()
    service.report(workflow("w", "ab", ends=False))
    assert service.flush() == 0


async def test_a_subscriber_gets_a_snapshot_and_then_what_changes() -> None:
    service = make()
    service.report([*workflow("done", "ab"), *workflow("x", "a", ends=False), *workflow("y", "b", ends=False)])
    subscription = service.subscribe("worker")
    first = await take(subscription)
    assert first.snapshot
    assert names(first) == {"x", "y"}
    service.flush()
    await take(subscription)
    service.report([event(STEP, "x", 5, "b")])
    assert service.flush() == 1
    second = await take(subscription)
    assert not second.snapshot
    assert names(second) == {"x"}
    assert second.forecasts[0].epoch > first.forecasts[0].epoch
    assert second.forecasts[0].made_at == 1000.0


async def test_forecasts_go_to_the_workers_that_hold_the_workflow() -> None:
    service = make()
    everyone, near, far = (service.subscribe(name, placed_only=name != "all") for name in ("all", "near", "far"))
    for subscription in (everyone, near, far):
        assert names(await take(subscription)) == set()
    service.report([event(START), event(STEP, sequence=1), placed("near", sequence=2)])
    service.flush()
    assert names(await take(everyone)) == names(await take(near)) == {"w"}
    service.report([placed("far", sequence=3), event(STEP, "other", 1)])
    service.flush()
    assert names(await take(near)) == names(await take(far)) == {"w", "other"}, (
        "the start of `other` was lost: it may be on any worker"
    )
    service.report(workflow("x", "a", ends=False))
    service.flush()
    assert names(await take(everyone)) == {"w", "other", "x"}
    service.report([event(END, sequence=4)])
    service.flush()
    for subscription in (near, far):
        batch = await take(subscription)
        assert [each.ended for each in batch.forecasts] == [True], "and nothing of x, which is on no worker yet"


async def test_a_step_placed_where_others_were_needs_no_forecast() -> None:
    service = make()
    await take(subscription := service.subscribe("near", placed_only=True))
    service.report([event(START), event(STEP, sequence=1), placed("near", sequence=2)])
    assert service.flush() == 1
    assert service.report([placed("near", sequence=3)]) == Reported(1, 0)
    assert service.flush() == 0
    service.report([event(STEP, sequence=4), placed("near", sequence=5)])
    assert service.flush() == 1, "of the step; that it was placed where others were changes nothing"
    service.report([placed("far", sequence=6)])
    assert service.flush() == 1
    service.report([placed("near", sequence=8)])
    assert service.flush() == 1, "an event was lost: the workflow may be on any worker"
    assert names(await take(subscription)) == {"w"}


async def test_a_worker_is_sent_a_snapshot_of_what_it_holds() -> None:
    service = make()
    service.report([event(START, "mine"), placed("worker", "mine", 1), event(START, "theirs"), placed("peer", "theirs", 1)])
    service.report([event(STEP, "lost", 7)])
    assert names(await take(service.subscribe("worker", placed_only=True))) == {"mine", "lost"}
    assert names(await take(service.subscribe("worker"))) == {"mine", "theirs", "lost"}


async def test_where_an_event_is_missing_a_step_may_have_been_placed_anywhere() -> None:
    service = make()
    service.report([event(START), placed("worker", sequence=1), event(STEP, sequence=3)])
    assert names(await take(service.subscribe("peer", placed_only=True))) == {"w"}


async def test_changes_of_one_interval_travel_together() -> None:
    service = make()
    subscription = service.subscribe("worker")
    await take(subscription)
    service.report(workflow("x", "abab", ends=False))
    service.report(workflow("y", "b", ends=False))
    assert service.flush() == 2
    assert service.flush() == 0
    batch = await take(subscription)
    assert names(batch) == {"x", "y"}
    assert len({forecast.epoch for forecast in batch.forecasts}) == 1


async def test_an_end_is_broadcast() -> None:
    service = make()
    subscription = service.subscribe("worker")
    await take(subscription)
    service.report(workflow("w", "ab"))
    service.flush()
    (forecast,) = (await take(subscription)).forecasts
    assert forecast.ended
    assert forecast.steps == ()


async def test_a_stuck_subscriber_is_sent_a_snapshot_and_blocks_no_one() -> None:
    service = make(queue=5)
    stuck, brisk = service.subscribe("stuck"), service.subscribe("brisk")
    await take(stuck)
    await take(brisk)
    for i in range(20):
        service.report(workflow(f"w{i}", "ab", ends=i % 2 == 0))
        service.flush()
        batch = await take(brisk)
        assert not batch.snapshot
        assert names(batch) == {f"w{i}"}
    late = await take(stuck)
    assert late.snapshot
    assert names(late) == {f"w{i}" for i in range(20) if i % 2}
    service.report([event(STEP, "w1", 50)])
    service.flush()
    assert await take(stuck) == await take(brisk)


async def test_only_the_newest_forecast_of_a_workflow_waits() -> None:
    service = make(queue=1)
    subscription = service.subscribe("worker")
    await take(subscription)
    for sequence in range(100):
        service.report([event(STEP, sequence=sequence, agent="ab"[sequence % 2])])
        service.flush()
    batch = await take(subscription)
    assert not batch.snapshot
    assert len(batch.forecasts) == 1
    assert service.predict(["w"])[0].steps == batch.forecasts[0].steps


async def test_a_silent_workflow_leaves_without_being_called_ended_and_may_come_back() -> None:
    clock = ManualClock(1000.0)
    service = make(clock, lease_s=60.0)
    subscription = service.subscribe("worker")
    await take(subscription)
    service.report([*workflow("silent", "ab", ends=False), *workflow("talks", "a", ends=False)])
    service.flush()
    await take(subscription)
    clock.advance(59.0)
    service.report([event(STEP, "talks", 5)])
    clock.advance(2.0)
    service.flush()
    ended = {forecast.workflow: forecast.ended for forecast in (await take(subscription)).forecasts}
    assert ended == {"talks": False}
    assert service.open_workflows == 1
    assert service.report([event(STEP, "silent", 9)]) == Reported(1, 0)


def test_open_workflows_are_bounded() -> None:
    service = make(max_workflows=3)
    for name in "abcd":
        service.report([event(START, name)])
    service.report([event(STEP, "b", 1), event(START, "e")])
    assert service.open_workflows == 3
    assert [forecast.workflow for forecast in service.predict(["a", "b", "c", "d", "e"])] == ["b", "d", "e"]


def test_epochs_grow_across_restarts() -> None:
    clock = ManualClock(1_700_000_000.0)
    before = make(clock)
    before.report([event(START)])
    epochs = [before.predict(["w"])[0].epoch for _ in range(100)]
    assert epochs == sorted(set(epochs))
    clock.advance(1.0)
    after = make(clock)
    after.report([event(START)])
    assert after.predict(["w"])[0].epoch > epochs[-1]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (event(START, ""), "events.workflow_id"),
        (event(START, "é" * 129), "events.workflow_id"),
        (event(START, sequence=-1), "events.sequence"),
        (event(START, time=float("nan")), "events.time_s"),
        (WorkflowEvent(STEP, "w", 1, 0.0), "events.agent_id"),
        (WorkflowEvent(EventKind.STEP_FINISHED, "w", 1, 0.0), "events.agent_id"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a" * 257), "events.agent_id"),
        (WorkflowEvent(START, "w", 1, 0.0, workload="a" * 257), "events.workload"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", call_site="é" * 129), "events.call_site"),
        (WorkflowEvent(EventKind.TOOL_STARTED, "w", 1, 0.0, tool="t" * 257), "events.tool"),
        (WorkflowEvent(EventKind.STEP_PLACED, "w", 1, 0.0), "events.worker_id"),
        (WorkflowEvent(EventKind.STEP_PLACED, "w", 1, 0.0, worker="w" * 257), "events.worker_id"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", step=-1), "events.step"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", step=2**31), "events.step"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", parent_step=-1), "events.parent_step"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", prompt_tokens=-1), "events.prompt_tokens"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", output_tokens=-1), "events.output_tokens"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", expected_s=float("inf")), "events.expected_s"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", expected_s=float("nan")), "events.expected_s"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", expected_s=-0.5), "events.expected_s"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", pieces=tuple(range(129))), "events.pieces"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", words=(1,) * 257), "events.words"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", words=(1, 1 << 20)), "events.words"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", hidden=bytes(1026)), "events.hidden"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", hidden=bytes(3)), "events.hidden"),
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", hidden=b"\0\x3c\0\x7c"), "events.hidden"),  # 1, infinity
        (WorkflowEvent(STEP, "w", 1, 0.0, agent="a", hidden=b"\0\x7e"), "events.hidden"),  # not a number
    ],
)
def test_a_bad_event_is_refused_with_its_whole_batch(bad: WorkflowEvent, field: str) -> None:
    service = make()
    with pytest.raises(InvalidArgument) as raised:
        service.report([event(START, "good"), bad])
    assert raised.value.field == field
    assert service.open_workflows == 0


def test_an_event_may_be_as_large_as_the_limits_allow() -> None:
    largest = WorkflowEvent(
        STEP,
        "w" * 256,
        2**63 - 1,
        0.0,
        "é" * 128,
        "a" * 256,
        call_site="c" * 256,
        step=2**31 - 1,
        parent_step=2**31 - 2,
        tool="t" * 256,
        expected_s=0.0,
        pieces=tuple(range(2**32 - 128, 2**32)),
        words=((1 << 20) - 1,) * 256,
        hidden=b"\xff\x7b" * 512,  # the largest finite value
    )
    assert make().report([largest]) == Reported(1, 0)


@given(
    pieces=st.lists(st.integers(0, 2**32 - 1), max_size=200),
    words=st.lists(st.integers(0, 2**21), max_size=300),
    hidden=st.binary(max_size=1100),
    step=st.integers(-1, 2**31 - 1),
)
def test_what_is_taken_keeps_to_the_limits(pieces: list[int], words: list[int], hidden: bytes, step: int) -> None:
    service = make()
    try:
        fuzzed = WorkflowEvent(STEP, "w", 1, 0.0, "", "a", "", step, None, "", None, 0, 0, tuple(pieces), tuple(words), hidden)
        service.report([event(START, "good"), fuzzed])
    except InvalidArgument as error:
        assert error.field in {"events.pieces", "events.words", "events.hidden", "events.step"}  # noqa: PT017
        assert service.open_workflows == 0
    else:
        assert len(pieces) <= 128
        assert len(words) <= 256
        assert max(words, default=0) < 1 << 20
        assert len(hidden) <= 1024
        assert np.isfinite(np.frombuffer(hidden, "<f2")).all()
        assert step >= 0


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"predictor\.model"):
        PredictorService(PredictorConfig(model="nothing"), ManualClock())


async def test_a_closed_service_says_so() -> None:
    service = make()
    subscription = service.subscribe("worker")
    await take(subscription)
    waiting = asyncio.create_task(take(subscription))
    await asyncio.sleep(0)
    service.close("it stops")
    with pytest.raises(Unavailable, match="it stops"):
        await waiting
    for refused in (lambda: service.report([event(START)]), lambda: service.predict(["w"]), lambda: service.subscribe("x")):
        with pytest.raises(Unavailable, match="it stops"):
            refused()
    assert service.subscribers == 0


async def test_subscribers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcaster, "MAX_SUBSCRIBERS", 2)
    service = make()
    first = service.subscribe("1")
    service.subscribe("2")
    with pytest.raises(ResourceExhausted):
        service.subscribe("3")
    first.close()
    first.close()
    with pytest.raises(StopAsyncIteration):
        await anext(first)
    service.subscribe("3")


async def test_run_broadcasts_what_is_reported() -> None:
    service = PredictorService(PredictorConfig(), SystemClock())
    running = asyncio.create_task(service.run())
    subscription = service.subscribe("worker")
    assert (await take(subscription)).snapshot
    for name in ("x", "y"):
        service.report(workflow(name, "ab", ends=False))
        assert names(await take(subscription)) == {name}
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


class Studious(ExpertPredictor):
    """Has more to learn after each event, and counts what it has learnt."""

    left, taken = 0, 0

    def observe(self, event: WorkflowEvent) -> None:
        super().observe(event)
        self.left += 5

    def learn_some(self) -> bool:
        if self.left:
            self.left, self.taken = self.left - 1, self.taken + 1
        return self.left > 0


async def test_run_learns_all_that_waits_once_events_leave_time() -> None:
    predictor = Studious(PredictorConfig(), ["markov"])
    service = PredictorService(PredictorConfig(), SystemClock(), predictor)

    async def learnt() -> bool:
        return predictor.left == 0

    async with asyncio.TaskGroup() as group:
        running = group.create_task(service.run())
        subscription = service.subscribe("worker")
        assert (await take(subscription)).snapshot
        for number in range(20):
            service.report(workflow(f"w{number}", "ab", ends=False))
            assert names(await take(subscription)) == {f"w{number}"}
        await eventually(learnt, 20)
        assert predictor.taken == 20 * 3 * 5
        running.cancel()


async def test_run_lets_silent_workflows_go() -> None:
    service = PredictorService(PredictorConfig(), SystemClock(), lease_s=0.05)
    service.report([event(START)])

    async def gone() -> bool:
        return service.open_workflows == 0

    async with asyncio.TaskGroup() as group:
        running = group.create_task(service.run())
        await eventually(gone, 20)
        running.cancel()
