"""The relay with workers in memory, so that cancels and failures can arrive at any moment, also right before an event."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import LimitsConfig
from pbkv_cluster.core.errors import InvalidArgument, PbkvError, Unavailable
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, FinishReason, GatewayEvent, Tokens
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.inspection.agents import Agents
from pbkv_cluster.gateway.inspection.watchers import Watchers
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.routing.load import WorkerLoad
from pbkv_cluster.gateway.routing.prompt_keys import PromptKeys
from pbkv_cluster.gateway.routing.speeds import OutputLength, PrefillSpeed, StepSpeed
from pbkv_cluster.gateway.routing.step_link import FailureKind, StepOutcome, WorkerFailure
from pbkv_cluster.gateway.routing.worker import Worker
from pbkv_cluster.gateway.step.admission.admission import Admission
from pbkv_cluster.gateway.step.prompt_reader import TokenizedPrompt
from pbkv_cluster.gateway.step.relay import Relay
from pbkv_cluster.gateway.step.state import StepState
from pbkv_cluster.gateway.step.step import Step, StepSpec
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow
from pbkv_cluster.gateway.workflow.step_teller import StepTeller

RETRY_LIMIT = 2
NAMESPACE = Namespace("m", "1", "float32", "test")
PROMPT = pack(range(20))


@dataclass(frozen=True)
class Moment:
    """What a worker's stream does next."""

    what: FailureKind | str  # tokens, text, outcome
    cancel: bool  # the step is cancelled right before
    arrives: bool  # and what was on its way arrives all the same


MOMENTS = st.builds(
    Moment,
    st.sampled_from(["tokens", "tokens", "tokens", "text", "outcome", *FailureKind]),
    st.sampled_from([False, False, False, True]),
    st.booleans(),
)


@dataclass(eq=False)
class Stream:
    moments: list[Moment]
    step: Step
    cancelled: bool = False
    failures: list[FailureKind] = field(default_factory=list)

    def cancel(self) -> None:
        self.cancelled = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Tokens | StepOutcome:
        await asyncio.sleep(0)
        moment = self.moments.pop(0) if self.moments else Moment("outcome", False, False)
        if self.step.state is StepState.FINISHED:
            raise StopAsyncIteration
        if moment.cancel:
            self.step.cancel()
        if self.cancelled and not moment.arrives:
            raise asyncio.CancelledError
        match moment.what:
            case FailureKind() as kind:
                self.failures.append(kind)
                raise WorkerFailure(kind, InvalidArgument("step", kind), kind)
            case "outcome":
                return StepOutcome(FinishReason.LENGTH, Usage(), b"")
            case "text":
                return Tokens(b"", "t")
            case _:
                return Tokens(pack([1]), "a")


@dataclass(eq=False)
class MemoryWorker:
    id: str
    moments: list[Moment]
    closed: bool = False
    steps: WorkerLoad = field(default_factory=WorkerLoad)
    speed: StepSpeed = field(default_factory=StepSpeed)
    streams: list[Stream] = field(default_factory=list)
    namespace: Namespace = NAMESPACE

    @property
    def key(self) -> tuple[str, str]:
        return self.id, "1"

    def run_step(self, **fields: Any) -> Stream:
        (step,) = self.steps
        self.streams.append(Stream(self.moments, cast(Step, step)))
        return self.streams[-1]


@dataclass
class Pool:
    """Pool and placement in one: the first worker that the step has not tried, else the first."""

    workers: list[MemoryWorker]

    def live(self) -> list[MemoryWorker]:
        return self.workers

    def known(self) -> list[MemoryWorker]:
        return self.workers

    def lost(self, worker: MemoryWorker) -> None:
        pass

    def release(self, worker: MemoryWorker, step: object) -> None:
        worker.steps.discard(step)

    async def wait(self, avoid: Sequence[object], cancelled: asyncio.Event) -> list[MemoryWorker]:
        await asyncio.sleep(0)
        return [] if cancelled.is_set() else [each for each in self.workers if each.key not in avoid] or self.workers

    async def choose(
        self, workers: list[MemoryWorker], keys: object, last: object, workflow: str, agent: str
    ) -> tuple[MemoryWorker, int]:
        await asyncio.sleep(0)
        return workers[0], 0


@dataclass
class Run:
    """What became of a step."""

    step: Step
    workers: list[MemoryWorker]
    ends: list[StepState]  # final states that the step reported
    events: list[GatewayEvent] = field(default_factory=list)
    decisions: Decisions = field(default_factory=Decisions)
    error: PbkvError | None = None
    lost: int = 0  # workers that the teller takes to be lost


class CountingTeller(StepTeller):
    """Counts the workers that it takes to be lost."""

    lost = 0

    def ended(self, workflow: OpenWorkflow, number: int, output: bytes, lost: Worker | None = None) -> None:
        self.lost += lost is not None
        super().ended(workflow, number, output, lost)


async def run(scripts: list[list[Moment]]) -> Run:
    """Runs a step; each worker's streams go on where its script is."""
    ends: list[StepState] = []
    clock = ManualClock()
    pool: Any = Pool([MemoryWorker(f"w{number}", moments) for number, moments in enumerate(scripts)])
    done = Run(Step(0.0, lambda step: ends.append(step.state)), pool.workers, ends)
    step = done.step
    teller = CountingTeller(pool, Decisions(), clock)
    relay = Relay(
        admission=Admission(1, 1, LimitsConfig(), done.decisions, clock),
        pool=pool,
        placement=pool,
        speed=PrefillSpeed(),
        lengths=OutputLength(),
        infinite=InfiniteCache(100),
        agents=Agents(),
        watchers=Watchers(clock),
        meter=GatewayMeter(8),
        events=EventReporter(lambda event: None, clock),
        contexts=Contexts(),
        teller=teller,
        decisions=done.decisions,
        clock=clock,
        retry_limit=RETRY_LIMIT,
    )
    workflow = OpenWorkflow("w", "", "", 10.0, 0.0, 0.0)
    prompt = TokenizedPrompt(PROMPT, PromptKeys(PROMPT, ""))
    step.spec = StepSpec(workflow, 0, "agent", "", None, "", 0, prompt, SamplingParams(), 0)
    try:
        async for event in relay.run(step, step.spec):
            done.events.append(event)  # those before an error count too
    except PbkvError as error:
        done.error = error
        step.fail()
    done.lost = teller.lost
    return done


@given(st.lists(st.lists(MOMENTS, max_size=6), min_size=1, max_size=3))
def test_a_step_has_one_end_whatever_arrives_when(scripts: list[list[Moment]]) -> None:
    done = asyncio.run(run(scripts))
    step, events, error = done.step, done.events, done.error
    assert done.ends == [step.state], "one end, without an illegal transition on the way"
    assert not any(len(worker.steps) for worker in done.workers)
    if events:
        assert isinstance(events[0], Accepted)
        assert all(isinstance(event, Tokens) for event in events[1:-1])
    match step.state:
        case StepState.FINISHED:
            assert error is None
            assert [event.reason for event in events if isinstance(event, Finished)] == [FinishReason.LENGTH]
        case StepState.CANCELLED:
            assert error is None
            assert [event.reason for event in events if isinstance(event, Finished)] == [FinishReason.CANCELLED]
        case state:
            assert state is StepState.FAILED
            assert error is not None
            assert not any(isinstance(event, Finished) for event in events)
    latest = step.stream
    assert latest is None or cast(Any, latest).cancelled == (step.state is not StepState.FINISHED)
    assert step.retries == done.decisions[Reason.STEP_RETRIED] <= RETRY_LIMIT
    failures = [kind for worker in done.workers for stream in worker.streams for kind in stream.failures]
    assert done.lost == failures.count(FailureKind.LOST), "a worker whose step was cancelled is as well as before"
    sent = sum(len(event.packed) for event in events if isinstance(event, Tokens))
    assert sent == len(step.sent), "the client has what the step counts as sent"


def test_losing_too_many_workers_is_unavailable() -> None:
    scripts = [[Moment(FailureKind.LOST, False, False)] for _ in range(RETRY_LIMIT + 1)]
    done = asyncio.run(run(scripts))
    assert done.ends == [StepState.FAILED]
    assert isinstance(done.error, Unavailable)
    assert [type(event) for event in done.events] == [Accepted]
