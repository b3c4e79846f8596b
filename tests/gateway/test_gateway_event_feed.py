"""The feed of events to the predictor: no event is lost with a stream, and nothing grows without bound."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.predictor_feed.event_stream import StreamLimits
from pbkv_cluster.gateway.predictor_feed.feed import CAPACITY, CAPACITY_BYTES, EventFeed
from pbkv_cluster.rpc.convert import event_to_wire
from tests.gateway.peers import ScriptedPredictor
from tests.gateway.rig import until

SMALL, LARGE = 0, 128  # pieces of an event
LIMITS = StreamLimits()


def event(sequence: int, pieces: int) -> WorkflowEvent:
    return WorkflowEvent(EventKind.STEP_STARTED, "w", sequence, 0.0, "", "a", pieces=tuple(range(pieces)))


class Line:
    """A feed, and the directory in which it finds its predictor, if any."""

    def __init__(self, stack: AsyncExitStack, capacity: int, limits: StreamLimits, capacity_bytes: int) -> None:
        self._stack = stack
        self._address = ""
        self._next = 0
        self.decisions = Decisions()
        self.feed = EventFeed(self, self.decisions, capacity, limits, capacity_bytes)

    async def service_address(self, name: str) -> str | None:
        return self._address or None

    async def move_to(self, predictor: ScriptedPredictor) -> ScriptedPredictor:
        """Starts a predictor and announces it instead of any other."""
        await predictor.start()
        self._stack.push_async_callback(predictor.server.stop, 0)
        self._address = predictor.address
        return predictor

    def put(self, number: int, pieces: int = SMALL) -> list[int]:
        """Queues events; returns the sequence numbers of all events so far."""
        for sequence in range(self._next, self._next + number):
            self.feed.put(event(sequence, pieces))
        self._next += number
        return list(range(self._next))


@asynccontextmanager
async def line(
    capacity: int = CAPACITY, limits: StreamLimits = LIMITS, capacity_bytes: int = CAPACITY_BYTES
) -> AsyncIterator[Line]:
    async with AsyncExitStack() as stack:
        made = Line(stack, capacity, limits, capacity_bytes)
        background = Background()
        background.start(made.feed.run(), "events")
        stack.push_async_callback(background.stop)
        yield made


def heard(*predictors: ScriptedPredictor) -> list[int]:
    """Sequence numbers in order of arrival, with repetitions."""
    return [event.sequence for predictor in predictors for event in predictor.events]


async def until_heard(predictor: ScriptedPredictor, sequences: Iterable[int]) -> None:
    wanted = list(sequences)
    await until(lambda: heard(predictor) == wanted, "it has heard of all, once and in order")


async def test_events_arrive_once_and_in_order() -> None:
    async with line() as it:
        everything = it.put(CAPACITY)
        predictor = await it.move_to(ScriptedPredictor())
        await until_heard(predictor, everything)
        for number in (1, 1, 3 * LIMITS.window_events, 1):
            await until_heard(predictor, it.put(number))
        assert predictor.streams == 1
        assert not it.decisions


async def test_unacknowledged_events_are_sent_to_the_next_predictor() -> None:
    async with line() as it:
        first = await it.move_to(ScriptedPredictor(silent=True))
        for _ in range(3):
            await until_heard(first, it.put(100))
        await first.server.stop(0)
        second = await it.move_to(ScriptedPredictor())
        await until_heard(second, it.put(100))
        assert not it.decisions[Reason.EVENT_DROPPED]


async def test_acknowledged_events_are_not_sent_again() -> None:
    async with line(limits=StreamLimits(window_events=1, ack_events=1)) as it:
        first = await it.move_to(ScriptedPredictor())
        for _ in range(3):
            *_, last = it.put(1)
            await until(lambda: last in heard(first), "it is taken")  # noqa: B023
        await first.server.stop(0)
        second = await it.move_to(ScriptedPredictor())
        it.put(1)
        await until(lambda: 3 in heard(second), "the next arrives")
        assert set(heard(second)) <= {2, 3}, "the answer about the last may have been on its way"


async def test_nothing_is_lost_however_often_the_predictor_dies() -> None:
    async with line() as it:
        predictors = list[ScriptedPredictor]()
        for _ in range(5):
            predictors.append(await it.move_to(ScriptedPredictor()))
            for _ in range(20):
                it.put(7)
                await asyncio.sleep(0)
            await until(lambda: bool(heard(predictors[-1])), "it hears something")
            await predictors[-1].server.stop(0)
        predictors.append(await it.move_to(ScriptedPredictor()))
        everything = it.put(7)
        await until(lambda: heard(predictors[-1])[-1:] == everything[-1:], "the last arrives")
        assert sorted(set(heard(*predictors))) == everything
        for each in predictors:
            (first, *_, last) = heard(each)
            assert heard(each) == everything[first : last + 1], "each hears a part, in order"
        assert not it.decisions[Reason.EVENT_DROPPED]


@pytest.mark.parametrize(("number", "pieces"), [(3, SMALL), (CAPACITY, LARGE)], ids=["a few", "more than a stream holds"])
async def test_a_predictor_that_does_not_answer_counts_as_lost(number: int, pieces: int) -> None:
    async with line(limits=StreamLimits(deadline_s=1.0)) as it:  # less, and a busy machine loses the second predictor too
        stuck = await it.move_to(ScriptedPredictor(go=asyncio.Event()))
        assert stuck.go is not None
        stuck.go.set()
        await until(lambda: it.feed.address == stuck.address, "it answers")
        stuck.go.clear()
        everything = it.put(number, pieces)
        await until(lambda: not it.feed.reachable, "it is missed")
        assert it.feed.address == ""
        other = await it.move_to(ScriptedPredictor())
        await until_heard(other, everything)
        await until(lambda: it.feed.address == other.address, "the other answers")
        assert not it.decisions[Reason.EVENT_DROPPED]


async def test_the_predictor_is_found_without_events() -> None:
    async with line() as it:
        for _ in range(2):
            predictor = await it.move_to(ScriptedPredictor())
            await until(lambda: it.feed.address == predictor.address, "it is there")  # noqa: B023
            await predictor.server.stop(0)
            await until(lambda: not it.feed.reachable, "it is gone")


async def test_only_a_refused_batch_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async with line() as it:
        predictor = await it.move_to(ScriptedPredictor(refuses=frozenset({2, 3, 6})))
        await until(lambda: it.feed.reachable, "the first question is answered: the next comes later than all that follows")
        for dropped in (0, 0, 1, 2, 2, 2, 3, 3):
            *_, last = it.put(1)
            if last in predictor.refuses:
                await until(lambda: it.decisions[Reason.EVENT_DROPPED] == dropped, "it is dropped")  # noqa: B023
            else:
                await until(lambda: last in heard(predictor), "it arrives")  # noqa: B023
            assert it.decisions[Reason.EVENT_DROPPED] == dropped
            assert it.feed.reachable
        assert list(dict.fromkeys(heard(predictor))) == [0, 1, 4, 5, 7]
        assert it.decisions[Reason.EVENT_DROPPED] == predictor.refused == 3
    assert caplog.text.count("the predictor refuses events: INVALID_ARGUMENT: scripted") == 2, "once for each time it began to"


async def test_of_a_batch_only_the_events_that_are_refused_alone_are_dropped() -> None:
    async with line() as it:
        everything = it.put(700)
        predictor = await it.move_to(ScriptedPredictor(refuses=frozenset({2, 3, 600})))
        await until(lambda: heard(predictor)[-1:] == [699], "the rest arrives")
        assert list(dict.fromkeys(heard(predictor))) == [each for each in everything if each not in predictor.refuses]
        assert it.decisions[Reason.EVENT_DROPPED] == 3
        refused = predictor.refused
        it.put(100)
        await until(lambda: heard(predictor)[-1:] == [799], "the next arrive")
        assert predictor.refused == refused
        assert it.decisions[Reason.EVENT_DROPPED] == 3


async def test_a_refused_event_costs_no_other_workflow_its_history() -> None:
    async with line() as it:
        for at in range(50):
            it.feed.put(WorkflowEvent(EventKind.WORKFLOW_STARTED, f"other-{at}", 0, 0.0))
        malformed = WorkflowEvent(EventKind.WORKFLOW_STARTED, "malformed", 99, 0.0)
        it.feed.put(malformed)
        first = await it.move_to(ScriptedPredictor(instance=1, refuses=frozenset({malformed.sequence})))
        await until(lambda: it.decisions[Reason.EVENT_DROPPED] > 0, "it is dropped")
        await until(lambda: len({event.workflow for event in first.events}) == 50, "the others arrive")
        await first.server.stop(0)
        await until(lambda: not it.feed.reachable, "it is gone")
        second = await it.move_to(ScriptedPredictor(instance=2, refuses=first.refuses))
        await until(lambda: len({event.workflow for event in second.events}) == 50, "it is told of all others")
        assert second.refused == 0
        assert it.decisions[Reason.EVENT_DROPPED] == 1


async def test_a_predictor_that_refuses_the_stream_is_not_reachable_and_is_tried_again() -> None:
    async with line() as it:
        predictor = await it.move_to(ScriptedPredictor(fail_with=grpc.StatusCode.UNIMPLEMENTED))
        await until(lambda: predictor.streams >= 2, "it is tried again")
        assert not it.feed.reachable
        predictor.fail_with = None
        await until(lambda: it.feed.address == predictor.address, "it answers")
        await until_heard(predictor, it.put(3))


async def test_no_more_than_a_window_is_sent_without_an_acknowledgement() -> None:
    async with line(limits=StreamLimits(batch_events=4, window_events=16, ack_events=8, deadline_s=0.2)) as it:
        predictor = await it.move_to(ScriptedPredictor(silent=True))
        everything = it.put(100)
        await until(lambda: predictor.streams >= 3, "it is tried again")
        assert set(heard(predictor)) == set(range(16))
        predictor.silent = False
        await until(lambda: heard(predictor)[-1:] == everything[-1:], "it hears the rest, once it answers")
        assert sorted(set(heard(predictor))) == everything


async def test_unacknowledged_events_count_towards_capacity() -> None:
    async with line(capacity=3) as it:
        first = await it.move_to(ScriptedPredictor(silent=True))
        for number in (1, 2, 3):
            await until_heard(first, it.put(number))
        await first.server.stop(0)
        second = await it.move_to(ScriptedPredictor())
        await until_heard(second, [3, 4, 5])
        assert it.decisions[Reason.EVENT_DROPPED] == 3


async def test_large_events_are_bounded_in_bytes_wherever_they_are() -> None:
    size = event_to_wire(event(1, LARGE)).ByteSize()
    limits = StreamLimits(batch_bytes=2 * size, window_bytes=4 * size, deadline_s=0.2)
    async with line(limits=limits, capacity_bytes=10 * size) as it:
        it.put(30, LARGE)
        assert it.decisions[Reason.EVENT_DROPPED] == 20, "the oldest are dropped beyond the capacity"
        predictor = await it.move_to(ScriptedPredictor(silent=True))
        await until(lambda: predictor.streams >= 2, "it is tried again")
        assert set(heard(predictor)) == set(range(20, 24)), "no more than a window is sent"
        predictor.silent = False
        await until(lambda: heard(predictor)[-1:] == [29], "it hears the rest, once it answers")
        assert max(predictor.requests) == 2, "events in one request"
        assert it.decisions[Reason.EVENT_DROPPED] == 20


@pytest.mark.parametrize("found", [True, False], ids=["on its stream", "before it has found the predictor"])
async def test_finishing_sends_what_is_queued_first(found: bool) -> None:
    async with line() as it:
        if found:
            predictor = await it.move_to(ScriptedPredictor())
            await until_heard(predictor, it.put(1))
            everything = it.put(700)
        else:
            everything = it.put(700)
            predictor = await it.move_to(ScriptedPredictor())
        await it.feed.finish()
        assert heard(predictor) == everything
        assert not it.decisions


async def test_finishing_ends_without_a_predictor_or_with_a_stuck_one() -> None:
    async with line() as nowhere:
        nowhere.put(3)
        await nowhere.feed.finish(0.1)
        assert not nowhere.feed.reachable
    async with line() as never_run:
        await never_run.feed.finish()
    async with line() as stuck:
        await stuck.move_to(ScriptedPredictor(go=asyncio.Event()))
        stuck.put(3)
        await stuck.feed.finish(0.1)
        assert not stuck.feed.reachable


async def test_a_predictor_that_has_restarted_is_told_the_open_workflows_first() -> None:
    def of_open(predictor: ScriptedPredictor) -> list[int]:
        return [each.sequence for each in predictor.of("w")]

    async with line() as it:
        first = await it.move_to(ScriptedPredictor(instance=1))
        everything = it.put(3)
        for at, kind in enumerate((EventKind.TOOL_STARTED, EventKind.WORKFLOW_ENDED)):
            it.feed.put(WorkflowEvent(kind, "ended", at, 0.0))
        await until(lambda: len(first.of("ended")) == 2, "it hears of both workflows")
        await first.server.stop(0)
        await until(lambda: not it.feed.reachable, "it is gone")
        second = await it.move_to(ScriptedPredictor(instance=2))
        await until(lambda: of_open(second) == everything, "it is told again")
        everything = it.put(2)
        await until(lambda: of_open(second) == everything, "it goes on from there")
        await second.server.stop(0)
        await until(lambda: not it.feed.reachable, "it is gone")
        again = await it.move_to(ScriptedPredictor(instance=2))
        everything = it.put(1)
        await until(lambda: heard(again)[-1:] == everything[-1:], "the next arrives")
        assert not it.decisions


async def test_a_predictor_that_only_lost_its_connection_is_not_told_again() -> None:
    async with line(limits=StreamLimits(ack_interval_s=0.01)) as it:
        first = await it.move_to(ScriptedPredictor(instance=1))
        await until(lambda: it.feed.reachable, "it answers")
        await until_heard(first, it.put(3))
        asked = len(first.requests)
        await until(lambda: first.requests[asked:].count(0) >= 2, "all is acknowledged")
        await first.server.stop(0)
        again = await it.move_to(ScriptedPredictor(instance=1))
        it.put(1)
        await until_heard(again, [3])


async def test_what_a_restarted_predictor_has_not_acknowledged_is_told_to_the_next() -> None:
    async with line(capacity=4, limits=StreamLimits(batch_events=4, window_events=8, ack_events=4, deadline_s=0.2)) as it:
        everything = it.put(100)
        lost = it.decisions[Reason.EVENT_DROPPED]
        stuck = await it.move_to(ScriptedPredictor(instance=1, silent=True))
        await until(lambda: stuck.streams >= 2, "it is tried again")
        assert set(heard(stuck)) == set(range(8))
        stuck.silent = False
        await until(lambda: everything[-1] in heard(stuck), "it is told everything")
        assert list(dict.fromkeys(heard(stuck))) == everything
        assert it.decisions[Reason.EVENT_DROPPED] == lost


async def test_a_history_that_is_refused_is_not_told_again() -> None:
    async with line() as it:
        it.put(4)
        it.feed.put(WorkflowEvent(EventKind.WORKFLOW_STARTED, "other", 9, 0.0))
        predictor = await it.move_to(ScriptedPredictor(instance=1, refuses=frozenset({2})))
        await until(lambda: it.feed.reachable, "it answers")
        await until(lambda: it.decisions[Reason.EVENT_DROPPED] > 0, "the batch is dropped")
        it.feed.put(WorkflowEvent(EventKind.TOOL_STARTED, "other", 10, 0.0))
        await until(lambda: 10 in heard(predictor), "others go on")
