"""The bounds on requests that pass a sidecar at a time."""

from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.gateway.decisions import Decisions, Reason


class InFlight:
    """At most so many requests, with bodies of at most so many bytes together."""

    def __init__(self, max_requests: int, max_bytes: int, decisions: Decisions) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._decisions = decisions
        self._requests: dict[object, int] = {}  # bytes of each
        self._bytes = 0

    def admit(self, request: object, size_bytes: int) -> None:
        """Lets a request in.

        Args:
            request: stands for it.
            size_bytes: of its body.

        Raises:
            ResourceExhausted: too many are in flight, or they are too large.
        """
        if len(self._requests) >= self._max_requests:
            raise self._refusal(f"{self._max_requests} requests are in flight already (gateway.max_steps)")
        if self._bytes + size_bytes > self._max_bytes:
            raise self._refusal(
                f"{size_bytes} bytes are too many: requests in flight have {self._bytes} of {self._max_bytes} "
                "(gateway.max_step_bytes)"
            )
        self._requests[request] = size_bytes
        self._bytes += size_bytes

    def release(self, request: object) -> None:
        """A request is over. Harmless when repeated."""
        self._bytes -= self._requests.pop(request, 0)

    def _refusal(self, problem: str) -> ResourceExhausted:
        self._decisions[Reason.STEP_REFUSED] += 1
        return ResourceExhausted(problem)
