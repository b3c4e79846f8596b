"""The states of a step in flight."""

from collections.abc import Mapping
from enum import StrEnum


class StepState(StrEnum):
    """Where a step is.

    state      meaning                                    next states
    accepted   let in; being read, or without a worker;   placed, finished, failed, cancelled
               or run by another call, or by the gateway
               that holds its workflow
    placed     sent to a worker, which has sent nothing   accepted, streaming, finished, failed, cancelled
    streaming  its worker sends output                    accepted, finished, failed, cancelled
    finished   it has been answered                       -
    failed     it was refused, or could not be run        -
    cancelled  its client left, or its workflow ended     -

    A step goes back to `accepted` when its worker is lost, fails or has no room, and it may go to another.
    """

    ACCEPTED = "accepted"
    PLACED = "placed"
    STREAMING = "streaming"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return not NEXT_STATES[self]


_ENDS = frozenset({StepState.FAILED, StepState.CANCELLED})
NEXT_STATES: Mapping[StepState, frozenset[StepState]] = {
    StepState.ACCEPTED: _ENDS | {StepState.PLACED, StepState.FINISHED},
    StepState.PLACED: _ENDS | {StepState.ACCEPTED, StepState.STREAMING, StepState.FINISHED},
    StepState.STREAMING: _ENDS | {StepState.ACCEPTED, StepState.FINISHED},
    StepState.FINISHED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.CANCELLED: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A defect: a step was to enter a state that does not follow its own."""

    def __init__(self, state: StepState, next_state: StepState) -> None:
        super().__init__(f"a step that is {state} cannot become {next_state}")
