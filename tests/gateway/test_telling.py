"""The teller with workers in memory, so that a step can end at any moment of a call."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.workflow.remote_steps import RemoteStepEnded, RemoteStepEvent
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.routing.worker import RemoteSteps, Worker
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow
from pbkv_cluster.gateway.workflow.step_teller import StepTeller
from pbkv_cluster.rpc.channel import MAX_MESSAGE_BYTES
from tests.gateway.peers import ScriptedWorker

PROMPT, OUTPUT = bytes(4 * BLOCK_BYTES), bytes(4 * BLOCK_BYTES + 4)


@dataclass(eq=False)
class Hearer:
    """A worker that takes what it is told, in order, as a real one does."""

    id: str
    go: asyncio.Event | None = None  # a call waits for it
    meanwhile: Callable[[], None] | None = None  # happens right after the first call has been answered
    calls: list[list[RemoteStepEvent]] = field(default_factory=list)
    heard: list[RemoteStepEvent] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        return self.id, "1"

    async def tell_steps(self, workflow_id: str, remote_steps: RemoteSteps) -> bool:
        self.calls.append(list(remote_steps.events))
        if self.go is not None:
            await self.go.wait()
        if self.meanwhile is not None:
            asyncio.get_running_loop().call_soon(self.meanwhile)
            self.meanwhile = None
        return self.take(remote_steps)

    def take(self, remote_steps: RemoteSteps) -> bool:
        if remote_steps.after > (self.heard[-1].index if self.heard else -1):
            return False
        self.heard += [each for each in remote_steps.events if not self.heard or each.index > self.heard[-1].index]
        return True


class Rig:
    """A teller, two workers, and a workflow."""

    def __init__(self, **bounds: int) -> None:
        self.one, self.two = Hearer("one"), Hearer("two")
        self.teller = StepTeller(self._pool(), Decisions(), ManualClock(), **bounds)
        self.workflow = OpenWorkflow("w", "", "", 10.0, 0.0, 0.0)

    def _pool(self) -> Any:
        class Pool:
            known = live = staticmethod(lambda: [self.one, self.two])

        return Pool()

    def began(self, number: int, worker: Hearer, prompt: bytes = PROMPT) -> RemoteSteps | None:
        untold = self.teller.began(self.workflow, number, "a", None, "", prompt, worker)  # type: ignore[arg-type]
        if untold is not None:
            assert worker.take(untold)
        return untold

    def ended(self, number: int, lost: Hearer | None = None) -> None:
        self.teller.ended(self.workflow, number, OUTPUT, lost)  # type: ignore[arg-type]

    async def finish(self, worker: Hearer) -> None:
        await self.teller.finish(self.workflow, worker)  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def kinds(events: list[RemoteStepEvent]) -> list[tuple[int, bool]]:
    return [(event.number, isinstance(event, RemoteStepEnded)) for event in events]


async def test_nothing_is_told_of_a_workflow_that_has_ended() -> None:
    rig = Rig()
    rig.began(0, rig.one)
    rig.ended(0)
    rig.began(1, rig.two)
    await settle()
    told = len(rig.one.calls), len(rig.two.calls)
    rig.workflow.ended = True
    rig.ended(1, lost=rig.two)
    assert rig.began(2, rig.one) is None
    await settle()
    assert (len(rig.one.calls), len(rig.two.calls)) == told
    rig.teller.drop(rig.workflow)
    assert rig.began(3, rig.one) is None
    assert rig.teller.size_bytes == 0


async def test_all_is_told_before_a_workflow_ends_and_no_call_is_on_its_way_after() -> None:
    rig = Rig(message_bytes=0)
    rig.one.go = asyncio.Event()
    rig.began(0, rig.one)
    rig.began(1, rig.two)
    await settle()
    rig.ended(1)
    rig.workflow.ended = True
    finishing = asyncio.create_task(rig.finish(rig.one))
    await settle()
    assert len(rig.one.calls) == 1, "a second call would overtake the first"
    assert not finishing.done()
    rig.one.go.set()
    await finishing
    assert kinds(rig.one.heard) == [(1, False), (1, True)]
    calls = len(rig.one.calls)
    rig.ended(0)
    await settle()
    assert len(rig.one.calls) == calls


async def test_a_step_brings_what_fits_and_calls_bring_the_rest() -> None:
    rig = Rig(message_bytes=3000)
    prompts = [bytes([number]) * 8 * BLOCK_BYTES for number in range(10)]
    for number, prompt in enumerate(prompts):
        rig.began(number, rig.one, prompt)
        rig.ended(number)
    brought = rig.began(10, rig.two)
    assert brought is not None
    assert 1 < len(brought.events) < 20
    await settle()
    assert kinds(rig.two.heard) == [(number, ended) for number in range(10) for ended in (False, True)]
    assert max(len(call) for call in [*rig.two.calls, brought.events]) < 6


async def test_histories_are_bounded_whatever_repeats_and_runs() -> None:
    rig = Rig(capacity_bytes=20_000)
    for number in range(300):
        rig.began(number, rig.one)
        assert rig.teller.size_bytes <= 20_000
        if number % 3:
            rig.ended(number)
            assert rig.teller.size_bytes <= 20_000
        if not number % 50:
            await settle()
    rig.began(300, rig.two)
    await settle()
    assert 0 < len(rig.two.heard) < 40, "the latest steps are told, from a history that has begun anew"


async def test_an_event_right_after_a_call_is_told() -> None:
    rig = Rig()
    rig.began(0, rig.one)
    rig.one.meanwhile = lambda: rig.ended(1)
    rig.began(1, rig.two)
    await settle()
    assert kinds(rig.one.heard) == [(1, False), (1, True)]


async def test_steps_of_an_ended_workflow_are_not_those_of_the_next_with_its_id() -> None:
    rig = Rig()
    rig.began(0, rig.one)
    earlier, rig.workflow = rig.workflow, OpenWorkflow("w", "", "", 10.0, 0.0, 0.0)
    earlier.ended = True
    rig.began(0, rig.one)
    rig.teller.ended(earlier, 0, OUTPUT)
    rig.teller.drop(earlier)
    rig.began(1, rig.two)
    assert kinds(rig.two.heard) == [(0, False)]


async def test_a_step_goes_without_what_its_message_has_no_room_for() -> None:
    peer = ScriptedWorker("w")
    await peer.start()
    worker = Worker.open(peer.record(), ManualClock())
    try:
        for size in (1 << 10, MAX_MESSAGE_BYTES - (1 << 20)):
            stream = worker.run_step(
                request_id="r",
                workflow_id="w",
                agent="a",
                step=0,
                parent_step=None,
                tenant="",
                prompt=bytes(size),
                sampling=SamplingParams(max_tokens=1),
                sent=b"",
                priority=0,
                step_graph=None,
                remote_steps=RemoteSteps([RemoteStepEnded(5, 0, "", bytes(2 << 20), 0.0, 1 << 19)], 3, 0.0),
            )
            assert [event async for event in stream]
        assert [len(request.remote_steps) for request in peer.requests] == [1, 0]
        assert peer.requests[0].remote_after == 3
    finally:
        await worker.close()
        await peer.server.stop(0)
