"""When a call that has failed is made again, and where."""

import math
import time

import grpc

from pbkv_cluster.core.errors import DeadlineExceeded, InvalidArgument, TryAgain, Unavailable
from pbkv_cluster.core.workflow.resumption import Received
from pbkv_cluster.core.workflow.step_events import StepEvent
from pbkv_cluster.rpc.convert import resumption_to_wire
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import workflow_pb2

# Seconds between two rounds, each of which tries every gateway once. They span some 1.5 s: a standby takes over in that time.
_PAUSES_S = (0.1, 0.2, 0.4, 0.8)
_MORE_PAUSES_S = (*_PAUSES_S, *(1.0,) * 10)  # for a step whose output has begun to come


def check_timeout(timeout_s: float) -> None:
    """Raises:
    InvalidArgument: it is not a positive, finite number of seconds.
    """
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
        raise InvalidArgument("timeout_s", f"must be a positive number of seconds, got {timeout_s!r}")


class Attempts:
    """The attempts at one call that may be made more than once."""

    def __init__(self, endpoints: int, timeout_s: float | None) -> None:
        """Args:
        endpoints: number of gateways.
        timeout_s: for all attempts together; None: no limit.

        Raises:
            InvalidArgument: the time-out is not a positive number.
        """
        if timeout_s is not None:
            check_timeout(timeout_s)
        self._endpoints = endpoints
        self._deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self._failures = 0

    @property
    def timeout_s(self) -> float | None:
        """For the next attempt."""
        return None if self._deadline == math.inf else max(self._deadline - time.monotonic(), 0.001)

    def progressed(self) -> None:
        """The latest attempt has got somewhere: those before it do not count."""
        self._failures = 0

    def pause_s(self, error: grpc.RpcError, *, begun: bool = False, step: bool = False) -> float:
        """Seconds to wait before the next attempt, at the next gateway.

        Args:
            error: of the latest attempt.
            begun: output has come.
            step: the call is a step, which is made again only where its gateway is gone; other calls, where anything is.

        Raises:
            PbkvError: there is no use in another attempt; this is the error of the latest.
        """
        failure = from_rpc(error)
        pauses = _MORE_PAUSES_S if begun else _PAUSES_S
        rounds, turn = divmod(self._failures + 1, self._endpoints)
        self._failures += 1
        pause = pauses[rounds - 1] if not turn and rounds <= len(pauses) else 0.0
        if not isinstance(failure, TryAgain if step else Unavailable) or rounds > len(pauses):
            raise failure from error
        if time.monotonic() + pause >= self._deadline:
            raise DeadlineExceeded(f"the time is up: {failure}") from error
        return pause


class StepAttempts:
    """The attempts at one step: each goes on from the output that has come, which neither lacks nor repeats anything."""

    def __init__(self, request: workflow_pb2.SubmitStepRequest, endpoints: int, timeout_s: float | None) -> None:
        """Args:
        request: of the step, with its id.
        endpoints: number of gateways.
        timeout_s: for all attempts together; None: no limit.
        """
        self._request = request
        self._received = Received()
        self._attempts = Attempts(endpoints, timeout_s)

    @property
    def timeout_s(self) -> float | None:
        """For the next attempt."""
        return self._attempts.timeout_s

    def message(self) -> workflow_pb2.SubmitStepRequest:
        """For the next attempt."""
        resumption = self._received.resumption()
        if resumption is not None:
            self._request.resume.CopyFrom(resumption_to_wire(resumption))
        return self._request

    def take(self, event: StepEvent) -> bool:
        """Notes an event; False: it is known already."""
        if not self._received.take(event):
            return False
        self._attempts.progressed()
        return True

    def pause_s(self, error: grpc.RpcError) -> float:
        """See `Attempts.pause_s`."""
        return self._attempts.pause_s(error, begun=self._received.greeted, step=True)
