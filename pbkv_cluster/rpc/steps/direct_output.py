"""The output of one step that may come straight from its worker."""

import asyncio

import grpc

from pbkv_cluster.core.workflow.step_events import AllHandedOver, Finished, Invitation, StepEvent
from pbkv_cluster.rpc.convert import gateway_event_from_wire, step_event_from_wire
from pbkv_cluster.rpc.steps.receiver import Receiver
from pbkv_cluster.rpc.steps.step_output import StepOutput, call_error
from pbkv_cluster.rpc.steps.step_streams import CallEnd, StepStreams
from pbkv_cluster.rpc.steps.unsettled import Unsettled
from pbkv_cluster.rpc.v1 import workflow_pb2

_LATE_S = 5.0  # that a worker's output may come after the gateway's word of its end


class DirectOutput(StepOutput):
    """As `StepOutput`. What comes from the worker ends with the worker's Finished; the gateway's word of it comes besides.

    Where the way from the worker is lost, iterating raises UNAVAILABLE: the step may be resumed at a gateway.
    """

    def __init__(
        self,
        streams: StepStreams,
        step: workflow_pb2.SubmitStepRequest,
        timeout_s: float | None,
        receiver: Receiver,
        unsettled: Unsettled,
    ) -> None:
        """Sends a step.

        Args:
            streams: to the gateway.
            step: to run.
            timeout_s: see `StepOutput`.
            receiver: that the step is to name.
            unsettled: has the step from its end to the gateway's word of it.
        """
        self._receiver = receiver
        self._unsettled = unsettled
        self._step = step.workflow_id, step.step_id
        self._is_settled = False  # the gateway's call is over
        self._has_lost_worker = False
        self._connection: object | None = None  # to the worker that sends the output
        self._is_relayed = False  # the gateway does
        self._is_complete = False  # Finished has come
        self._is_handed_over = False  # the gateway says that all has been sent
        self._late: asyncio.TimerHandle | None = None
        named = receiver.begin(self)
        self._number = named.call
        step.receiver.CopyFrom(named)
        super().__init__(streams, step, timeout_s)

    @property
    def has_lost_worker(self) -> bool:
        return self._has_lost_worker

    def cancel(self) -> None:
        self._receiver.end(self._number)
        if not self._is_complete:  # else the gateway hears of its end, and counts it as what it is
            super().cancel()

    def take(self, event: workflow_pb2.StepEvent) -> None:
        match gateway_event_from_wire(event):
            case None:
                return
            case Invitation() as invitation:
                self._is_relayed = True
                self._receiver.accept(invitation)
            case AllHandedOver():
                self._is_handed_over = True
                if not self._has_ended:
                    self._late = asyncio.get_running_loop().call_later(_LATE_S, self._give_up)
            case output:
                self._is_relayed = True
                self._add(output)

    def take_direct(self, event: workflow_pb2.StepEvent, connection: object) -> None:
        self._connection = connection
        if (value := step_event_from_wire(event)) is None or self._has_ended:
            return
        self._add(value)
        if self._is_complete:
            if not self._is_settled:
                self._unsettled.add(*self._step)
            self._close(None)

    def lost(self, connection: object) -> None:
        # Where nothing has come yet, from whom it would have come is not known.
        if self._connection is connection or (self._connection is None and not self._is_relayed):
            self._give_up()

    def ended(self, end: CallEnd | None) -> None:
        self._is_settled = True
        self._unsettled.settle(*self._step)
        is_on_its_way = self._is_handed_over and not self._is_complete
        if end is None or end.code is not grpc.StatusCode.OK or not is_on_its_way:
            # Where output has come from the worker, the gateway itself has no other reason to be unavailable.
            self._has_lost_worker = end is not None and not end.is_lost and self._connection is not None
            super().ended(end)

    def _add(self, event: StepEvent) -> None:
        if self._is_complete:  # where a workflow ends, both may say so
            return
        self._is_complete = isinstance(event, Finished)
        super()._add(event)

    def _give_up(self) -> None:
        self._has_lost_worker = True
        self._close(call_error(grpc.StatusCode.UNAVAILABLE, "the way from the worker is lost"))

    def _close(self, end: BaseException | None) -> None:
        if self._late is not None:
            self._late.cancel()
        self._receiver.end(self._number)
        super()._close(end)
