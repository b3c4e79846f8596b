"""Decides to which workload each open workflow belongs.

A workflow belongs to the workload that its client names; if the client names none, to the one that its first steps fit best;
and if none fits, to a new workload without a name. This is settled once the first steps are known. Until then the workflow's
events are buffered and applied to the best guess, and applied again from the first one whenever the guess changes.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.workload.evidence import STEPS, evidence_of
from pbkv_cluster.predictor_service.workload.profiles import WorkflowEvidence
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel
from pbkv_cluster.predictor_service.workload.workloads import Workload, Workloads

_MAX_BUFFERED = 16 * STEPS  # events of a workflow whose workload is not settled


class RecognitionState(Enum):
    """How certain the workload of a workflow is.

    | state   | workload                                     | events                                                   |
    |---------|----------------------------------------------|----------------------------------------------------------|
    | UNKNOWN | none                                         | buffered, and applied without a model                    |
    | GUESSED | the one that fits best                       | buffered, and applied to its model, which learns nothing |
    | SETTLED | final; none if none fits and learning is off | applied to its model, which learns from them             |

    | from             | to      | when                                                                                |
    |------------------|---------|-------------------------------------------------------------------------------------|
    | UNKNOWN, GUESSED | GUESSED | another workload fits better after a step                                           |
    | GUESSED          | UNKNOWN | no workload fits any more                                                           |
    | UNKNOWN, GUESSED | SETTLED | the first steps are known; or the workflow ends or its buffer is full, after a step |
    | UNKNOWN, GUESSED | SETTLED | the client names a workload that has a profile, or any if no workload is unnamed    |
    | SETTLED          | SETTLED | the client names another workload, under the same conditions                        |
    | SETTLED          | UNKNOWN | the client names another workload, which may be one that is still unnamed           |
    | UNKNOWN          | UNKNOWN | the workflow ends or its buffer is full, before any step: the buffer is emptied     |
    """

    UNKNOWN = "unknown"
    GUESSED = "guessed"
    SETTLED = "settled"


class Recognition:
    """The workload of one open workflow. Only `Recognizer` writes to it."""

    __slots__ = ("buffer", "client_name", "evidence", "reassigned", "state", "workload")

    def __init__(self) -> None:
        self.state = RecognitionState.UNKNOWN
        self.workload: Workload | None = None
        self.reassigned = False  # by the latest event
        self.client_name = ""  # of the workload, if the client gives one
        self.evidence: WorkflowEvidence | None = WorkflowEvidence()  # None: it has been used
        self.buffer: list[WorkflowEvent] = []  # all events so far; empty once the workload is settled

    @property
    def settled(self) -> bool:
        """Whether the workload is final, so that it learns from the workflow."""
        return self.state is RecognitionState.SETTLED

    @property
    def workload_name(self) -> str:
        """Name of the workload; "" if there is none."""
        return "" if self.workload is None else self.workload.name

    @property
    def workload_key(self) -> str:
        """Name of the workload that never changes, see `Workload`; "" if there is none."""
        return "" if self.workload is None else self.workload.key

    @property
    def model(self) -> WorkloadModel | None:
        """Model of the workload, if there is one."""
        return None if self.workload is None else self.workload.model


class Decision(NamedTuple):
    """What to do with an event of a workflow."""

    restart: bool  # the workload has changed: what was derived from earlier events no longer holds
    events: Sequence[WorkflowEvent]  # to be applied now, in order: none, the event, or the earlier ones again and the event


class Recognizer:
    """The state machine of `Recognition`: it decides, the predictor applies the events."""

    def __init__(self, workloads: Workloads, max_buffered: int = _MAX_BUFFERED) -> None:
        """Args:
        workloads: those that are known; new ones are opened, and unnamed ones renamed.
        max_buffered: events of a workflow; beyond, its workload is settled if a step has started.
        """
        self._workloads = workloads
        self._max_buffered = max_buffered

    def receive(self, recognition: Recognition, event: WorkflowEvent, learning: bool) -> Decision:
        """Takes the next event of a workflow into account.

        Args:
            recognition: of the workflow.
            event: the next one.
            learning: whether workloads may be opened and their profiles learnt.
        """
        recognition.reassigned = False
        if event.workload and event.workload != recognition.client_name:
            self._take_client_name(recognition, event.workload)
        self._add_evidence(recognition, event, learning)
        events = [event]
        if not recognition.settled:
            events = self._guess(recognition, event, learning)
        elif recognition.buffer:
            events = [*recognition.buffer, event]
            recognition.buffer = []
        return Decision(recognition.reassigned, events)

    def _take_client_name(self, recognition: Recognition, name: str) -> None:
        recognition.client_name = name
        self._workloads.set_named(name)
        present = recognition.workload_name
        if recognition.settled and present in self._workloads.unnamed and name not in self._workloads:
            self._workloads.rename(present, name)
        elif name in self._workloads.profiles or not self._workloads.unnamed:
            self._settle(recognition, name)
        elif recognition.settled:
            # The first steps that follow tell whether the named workload is one of the unnamed.
            self._assign(recognition, RecognitionState.UNKNOWN, None)
            recognition.evidence = WorkflowEvidence()

    def _add_evidence(self, recognition: Recognition, event: WorkflowEvent, learning: bool) -> None:
        evidence = recognition.evidence
        if evidence is None:
            return
        if event.kind is EventKind.WORKFLOW_ENDED and recognition.settled:
            self._use_evidence(recognition, learning)
        if event.kind is not EventKind.STEP_STARTED:
            return
        step = evidence_of(event.step, event.agent, event.call_site, event.pieces)
        if recognition.settled:
            evidence.steps.append(step)  # for the profile; scores are not needed any more
        else:
            self._workloads.profiles.add_step(evidence, step)
        if len(evidence.steps) == STEPS:
            self._use_evidence(recognition, learning)

    def _guess(self, recognition: Recognition, event: WorkflowEvent, learning: bool) -> list[WorkflowEvent]:
        """Buffers an event of a workflow that is not settled. Returns the events to apply, all of them if the guess changes."""
        recognition.buffer.append(event)
        if event.kind is EventKind.WORKFLOW_ENDED or len(recognition.buffer) > self._max_buffered:
            self._use_evidence(recognition, learning)
            buffered, recognition.buffer = recognition.buffer, []
            return buffered if recognition.settled else []  # not settled: no step has started
        best = "" if recognition.evidence is None else self._best(recognition, recognition.evidence)
        if best == recognition.workload_name:
            return [event]
        workload = self._workloads.get(best)
        self._assign(recognition, RecognitionState.GUESSED if workload else RecognitionState.UNKNOWN, workload)
        return list(recognition.buffer)

    def _use_evidence(self, recognition: Recognition, learning: bool) -> None:
        """No more evidence will come: settles the workload if it is not yet, and adds the evidence to its profile."""
        evidence, recognition.evidence = recognition.evidence, None
        if evidence is None or not evidence.steps:
            return
        if not recognition.settled:
            name = self._best(recognition, evidence)
            if recognition.client_name:
                if name and recognition.client_name not in self._workloads:
                    self._workloads.rename(name, recognition.client_name)
                name = recognition.client_name
            elif not name and learning:
                name = self._workloads.new_name()
            self._settle(recognition, name)
        if learning and recognition.workload_name in self._workloads:
            self._workloads.profiles.learn(recognition.workload_name, evidence.steps)

    def _best(self, recognition: Recognition, evidence: WorkflowEvidence) -> str:
        """Name of the workload that fits best; with a name from the client, of the unnamed ones only."""
        return self._workloads.profiles.best(evidence, self._workloads.unnamed if recognition.client_name else None)

    def _settle(self, recognition: Recognition, name: str) -> None:
        self._assign(recognition, RecognitionState.SETTLED, self._workloads.use(name) if name else None)

    @staticmethod
    def _assign(recognition: Recognition, state: RecognitionState, workload: Workload | None) -> None:
        recognition.state, recognition.workload, recognition.reassigned = state, workload, True
