"""The output of steps that have an id, so that a step that is submitted again is not run again.

One call at a time runs such a step, and notes its output; the others follow it. If that call ends before the step does, because
its client has left, the next call goes on from the output that there is, as after the loss of a worker. What runs no longer is
kept as long as its workflow is open, and within a bound in bytes: the oldest goes first.
"""

import asyncio
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from pbkv_cluster.core import tokens
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.core.workflow.resumption import Received, Resumption
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, GatewayEvent, HandedOver, StepEvent, Tokens
from pbkv_cluster.gateway.step.step import Step
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow
from pbkv_cluster.store.block_map import WorkerKey

_ANSWER_BYTES = 1024  # of one besides its output, about
_LOGPROB_BYTES = 128  # of a token that has some, and of each likeliest token that they name, about


@dataclass(eq=False, slots=True)
class Answer:
    """The output of one step so far."""

    call: weakref.ref[Step] | None = None  # that runs the step, or did last; its prompt is no part of what is kept
    number: int | None = None  # of the step in the workflow
    retries: int = 0  # workers that it has lost
    failed_workers: set[WorkerKey] = field(default_factory=set)  # that it has tried in vain
    accepted: Accepted | None = None
    finished: Finished | None = None
    failed: bool = False
    error: Exception | None = None  # why; kept only for those who follow, as it keeps in memory what the step had
    packed: bytearray = field(default_factory=bytearray)
    characters: int = 0
    _texts: list[str] = field(default_factory=list)
    _logprobs: list[TokenLogprobs] = field(default_factory=list)  # of the latest tokens; of those before them none are known
    _logprobs_bytes: int = 0
    _followers: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def runs_it(self) -> Step | None:
        """The call that runs the step, or did last, if it is not gone."""
        return None if self.call is None else self.call()

    @property
    def is_idle(self) -> bool:
        """Whether nobody runs the step, which has not ended."""
        return self.finished is None and not self.failed and ((step := self.runs_it) is None or step.is_final)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return len(self.packed) + 4 * self.characters + self._logprobs_bytes + _ANSWER_BYTES

    def check(self, resume: Resumption) -> None:
        """Raises:
        InvalidArgument: what a client has is not what the step has generated.
        """
        common = min(len(resume.packed), len(self.packed))
        if resume.packed[:common] != self.packed[:common]:
            raise InvalidArgument("resume.token_ids", "are not those that the step has generated")

    def begin(self, step: Step, resume: Resumption | None) -> None:
        """A call runs the step from now on, from the output that is known, here or to its client."""
        self.call = weakref.ref(step)
        if resume is not None and len(resume.packed) > len(self.packed):
            self.packed[:] = resume.packed
            self._logprobs.clear()
            self._logprobs_bytes = 0
        step.sent += self.packed
        step.sent_chars = self.characters
        step.retries = self.retries
        step.failed_workers |= self.failed_workers

    def add(self, event: GatewayEvent) -> None:
        """Notes what the step has sent."""
        match event:
            case Accepted():
                self.accepted = event
            case Tokens():
                self.packed += event.packed
                self._texts.append(event.text)
                self.characters += len(event.text)
                self._logprobs += event.logprobs
                self._logprobs_bytes += _LOGPROB_BYTES * sum(1 + len(each.top) for each in event.logprobs)
            case Finished():
                self.finished = event
            case HandedOver():
                self.add(event.event)
        self.notify()

    def fail(self, error: Exception) -> None:
        """The step cannot be run; so those who follow it are told."""
        self.failed = True
        self.error = error if self._followers else None
        self.notify()

    def notify(self) -> None:
        """Wakes those who follow."""
        if self._followers:
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def missing(self, received: Received) -> Tokens | None:
        """The output that a client lacks; None: nothing."""
        packed = bytes(self.packed[len(received.packed) :])
        text = self._text()[received.characters :] if received.characters < self.characters else ""
        wanted = tokens.count(packed)
        logprobs = tuple(self._logprobs[-wanted:]) if 0 < wanted <= len(self._logprobs) else ()
        return Tokens(packed, text, logprobs) if packed or text else None

    async def follow(self, call: Step, received: Received) -> AsyncIterator[StepEvent]:
        """What a client lacks, until the step has ended, or nobody runs it. Who iterates tells `received` of each event.

        Args:
            call: that follows; nothing comes once it is over, for example at its deadline.
            received: what its client has.

        Raises:
            PbkvError: the step has failed.
        """
        greeted = False
        self._followers += 1
        call.stream = _Follower(self)
        try:
            while not call.is_final:
                if self.failed:
                    assert self.error is not None
                    raise self.error
                changed = self._changed
                if self.accepted is not None and not greeted:
                    greeted = True
                    yield self.accepted
                if (output := self.missing(received)) is not None:
                    yield output
                elif self.finished is not None:
                    yield self.finished
                    return
                elif self.is_idle:
                    return
                else:
                    await changed.wait()
        finally:
            self._followers -= 1
            if not self._followers:
                self.error = None

    def _text(self) -> str:
        if len(self._texts) > 1:
            self._texts[:] = ["".join(self._texts)]
        return self._texts[0] if self._texts else ""


@dataclass(frozen=True, slots=True)
class _Follower:
    """A call that waits for what another one runs."""

    answer: Answer

    def cancel(self) -> None:
        """Has it look up."""
        self.answer.notify()


class Answers:
    """The answers of open workflows."""

    def __init__(self, capacity_bytes: int) -> None:
        """`capacity_bytes`: of the answers of steps that do not run."""
        self._capacity_bytes = capacity_bytes
        self._of: dict[OpenWorkflow, dict[str, Answer]] = {}
        self._kept: OrderedDict[tuple[OpenWorkflow, str], int] = OrderedDict()  # bytes of each, oldest first
        self.size_bytes = 0

    def of(self, workflow: OpenWorkflow, step_id: str) -> Answer:
        """The answer of a step; a new one if none is known."""
        return self._of.setdefault(workflow, {}).setdefault(step_id, Answer())

    def begin(self, workflow: OpenWorkflow, step_id: str, answer: Answer, step: Step, resume: Resumption | None) -> None:
        """A call runs a step from now on; see `Answer.begin`."""
        self._of.setdefault(workflow, {})[step_id] = answer
        answer.begin(step, resume)
        self.size_bytes -= self._kept.pop((workflow, step_id), 0)

    def settle(self, workflow: OpenWorkflow, step_id: str, answer: Answer) -> None:
        """The call that ran a step is over. A step that has failed is forgotten: it may be submitted anew."""
        answer.notify()
        if workflow.ended or answer.failed:
            self._forget(workflow, step_id)
            return
        self._kept[workflow, step_id] = answer.size_bytes
        self.size_bytes += answer.size_bytes
        while self.size_bytes > self._capacity_bytes:
            self._forget(*next(iter(self._kept)))

    def drop(self, workflow: OpenWorkflow) -> None:
        """Forgets a workflow."""
        for step_id in list(self._of.get(workflow, ())):
            self._forget(workflow, step_id)

    def _forget(self, workflow: OpenWorkflow, step_id: str) -> None:
        self.size_bytes -= self._kept.pop((workflow, step_id), 0)
        answers = self._of.get(workflow, {})
        answers.pop(step_id, None)
        if not answers:
            self._of.pop(workflow, None)
