"""Parts of the gateway that can be held in the hand: sessions, events, background tasks, usage."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.text.words import TEXT_CHARACTERS
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.predictor_feed.feed import EventFeed
from pbkv_cluster.gateway.routing.speeds import PrefillSpeed
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.server import GatewayServer
from pbkv_cluster.gateway.step.step import Step
from pbkv_cluster.gateway.workflow.sessions import Session, Sessions
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2
from pbkv_cluster.store.cluster_index import BlockIndex, Directory
from pbkv_cluster.store.cluster_index import connect as connect_redis
from tests.gateway.rig import codec, running, shared_redis, until


def session(name: str, clock: ManualClock, lease_s: float = 10.0) -> Session:
    return Session(name, "", "", lease_s, clock.wall(), clock.now())


@given(st.lists(st.tuples(st.sampled_from(["start", "call", "end", "wait"]), st.integers(0, 4)), max_size=60))
def test_exactly_the_silent_sessions_are_found(actions: list[tuple[str, int]]) -> None:
    clock = ManualClock()
    sessions = Sessions(clock, max_workflows=100)
    last_heard: dict[str, float] = {}
    for action, number in actions:
        name = str(number)
        match action:
            case "start" if name not in last_heard:
                sessions.add(session(name, clock, lease_s=5.0 + number))
                last_heard[name] = clock.now()
            case "call":
                if sessions.get(name) is not None:
                    last_heard[name] = clock.now()
            case "end" if (found := sessions.get(name)) is not None:
                sessions.remove(found)
                del last_heard[name]
            case "wait":
                clock.advance(number)
        silent, busy = sessions.expired()
        assert not busy
        assert {each.id for each in silent} == {
            each for each, heard in last_heard.items() if heard + 5.0 + int(each) <= clock.now()
        }
        for each in silent:
            sessions.remove(each)
            del last_heard[each.id]
        assert len(sessions) == len(last_heard)


def test_a_session_that_runs_a_step_is_not_silent() -> None:
    clock = ManualClock()
    sessions = Sessions(clock, 1)
    busy = session("busy", clock)
    sessions.add(busy)
    step = Step(clock.now())
    busy.running.add(step)
    clock.advance(100.0)
    assert sessions.expired() == ([], [busy])
    busy.running.discard(step)
    clock.advance(9.0)
    assert sessions.expired() == ([], [])
    clock.advance(1.0)
    assert sessions.expired() == ([busy], [])


@pytest.mark.parametrize("runs", [False, True])
def test_a_lease_too_short_to_tell_is_found_once_at_a_time(runs: bool) -> None:
    clock = ManualClock(1000.0)
    sessions = Sessions(clock, 1)
    brief = session("brief", clock, lease_s=1e-300)
    sessions.add(brief)
    if runs:
        brief.running.add(Step(clock.now()))
    for _ in range(2):
        assert sessions.expired() == (([], [brief]) if runs else ([brief], []))


def test_sessions_are_bounded_and_ended_ones_leave_nothing_behind() -> None:
    clock = ManualClock()
    sessions = Sessions(clock, 1)
    for number in range(1000):
        each = session(str(number), clock, lease_s=1e6)
        sessions.add(each)
        with pytest.raises(ResourceExhausted):
            sessions.add(session("more", clock))
        sessions.remove(each)
    assert len(sessions._leases) < 100


def test_a_tool_call_is_news_once() -> None:
    each = session("w", ManualClock())
    told = [each.tool_news("t", "", started) for started in (True, True, False, False, True)]
    assert told == [True, False, True, False, True]
    assert each.tool_news("t", "another call", True)


async def test_a_full_feed_drops_the_oldest_events_and_counts_them() -> None:
    async with running() as rig:
        decisions = Decisions()
        feed = EventFeed(rig.directory, decisions, capacity=3)
        background = Background()
        background.start(feed.run(), "events")
        for sequence in range(10):
            feed.put(WorkflowEvent(EventKind.STEP_STARTED, "w", sequence, 0.0))
        predictor = await rig.add_predictor()
        await until(lambda: len(predictor.of("w")) == 3, "what was kept arrives")
        assert [event.sequence for event in predictor.of("w")] == [7, 8, 9]
        assert decisions[Reason.EVENT_DROPPED] == 7
        await background.stop()


async def test_a_gateway_tells_what_failed_and_cleans_up_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(pool: WorkerPool) -> None:
        raise ValueError("broken")

    closed = asyncio.Event()

    async def close(pool: WorkerPool) -> None:
        closed.set()

    monkeypatch.setattr(WorkerPool, "run", fail)
    monkeypatch.setattr(WorkerPool, "close", close)
    redis = connect_redis(shared_redis())
    directory, index = Directory(redis, "failing", 60.0), BlockIndex(redis, "failing", 60.0)
    gateway = GatewayServer(Config(), directory, index, codec(), ManualClock())
    await gateway.start("127.0.0.1", 0)
    with pytest.raises(ValueError, match="broken"):
        await asyncio.wait_for(gateway.wait(), 20)
    with pytest.raises(ExceptionGroup, match="background tasks failed"):
        await gateway.stop()
    assert closed.is_set()
    await redis.aclose()


async def test_a_background_task_that_fails_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    background = Background()
    background.start(fail(), "the broken one")
    await until(lambda: "the broken one" in caplog.text, "it is logged")
    with pytest.raises(ValueError, match="broken"):
        await background.failure()
    with pytest.raises(ExceptionGroup, match="background tasks failed"):
        await background.stop()


async def test_a_background_task_that_loses_a_cancel_still_stops() -> None:
    lost = 0

    async def run() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    background = Background()
    background.start(run(), "stubborn")
    await asyncio.wait_for(background.stop(), 20)
    assert lost == 2


def test_the_prefill_speed_follows_what_was_measured() -> None:
    speed = PrefillSpeed()
    speed.add(Usage(computed_tokens=100, prefill_s=0.05))
    assert speed.seconds_per_token == pytest.approx(5e-4)
    speed.add(Usage(computed_tokens=1, prefill_s=9.0))
    assert speed.seconds_per_token == pytest.approx(5e-4), "one token measures nothing"
    for _ in range(200):
        speed.add(Usage(computed_tokens=100, prefill_s=0.1))
    assert speed.seconds_per_token == pytest.approx(1e-3)


@given(st.text(max_size=20) | st.text("ab", min_size=290, max_size=310), st.data())
def test_text_after_a_retry_starts_over_and_the_client_sees_it_once(text: str, data: st.DataObject) -> None:
    told = data.draw(st.integers(0, len(text)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    step = Step(0.0)
    shown = step.take(worker_pb2.RunStepEvent.Tokens(text=text[:told]), 0, 1.0)
    skip = step.sent_chars
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        shown += step.take(worker_pb2.RunStepEvent.Tokens(text=text[begin:end]), skip, 1.0)
        skip = max(skip - (end - begin), 0)
    assert shown == text
    assert step.beginning == text[:TEXT_CHARACTERS]
    assert step.first_token is None, "text alone is no token"
    step.take(worker_pb2.RunStepEvent.Tokens(token_ids=types_pb2.PackedTokens(data=b"\0\0\0\0")), 0, 2.0)
    assert step.first_token == 2.0
