"""A client's connection to its gateway: one of each process that uses it, and the calls that are tried again."""

import json
import math
import os

from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.core.security.tls import Tls
from pbkv_cluster.rpc.channel import CHANNEL_OPTIONS, connect, connect_blocking
from pbkv_cluster.rpc.security import Access, this_process
from pbkv_cluster.rpc.v1 import workflow_pb2, workflow_pb2_grpc

_SERVICE = workflow_pb2.DESCRIPTOR.services_by_name["WorkflowService"].full_name
# Calls that do nothing more when they are made twice. A step that has been sent is not sent again: it might run twice.
_SAFE_TWICE = ("StartWorkflow", "ReportToolCall", "EndWorkflow", "GetClusterStatus")
# Five attempts are the most that gRPC makes. With these pauses they span some 1.5 s, in which a standby gateway takes over.
_RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


class Connection:
    """For code without asyncio; may be used by several threads, and by processes forked after it was made."""

    def __init__(self, endpoint: str, timeout_s: float, access: Access) -> None:
        """Args:
        endpoint: host:port; the first call connects to it.
        timeout_s: seconds that a call may take, with all its attempts, if it is not a step.
        access: what the connection shows.

        Raises:
            InvalidArgument: names the argument that is out of its range.
        """
        parse_address("endpoint", endpoint)
        self._endpoint = endpoint
        self._options = _options(timeout_s)
        self._access = access
        self._open()

    @property
    def stub(self) -> workflow_pb2_grpc.WorkflowServiceStub:
        """Of a channel of this very process: the channel of the one that it was forked from is not usable here."""
        if os.getpid() != self._pid:
            self._open()
        return self._stub

    def close(self) -> None:
        if os.getpid() == self._pid:
            self._channel.close()

    def _open(self) -> None:
        self._channel = connect_blocking(self._endpoint, self._options, self._access)
        self._stub = workflow_pb2_grpc.WorkflowServiceStub(self._channel)
        self._pid = os.getpid()


class AsyncConnection:
    """For asyncio, whose event loop belongs to one process."""

    def __init__(self, endpoint: str, timeout_s: float, access: Access) -> None:
        """Arguments and errors as for `Connection`."""
        self._channel = connect(endpoint, "endpoint", _options(timeout_s), access)
        self._stub: workflow_pb2_grpc.WorkflowServiceAsyncStub = workflow_pb2_grpc.WorkflowServiceStub(self._channel)
        self._pid = os.getpid()

    @property
    def stub(self) -> "workflow_pb2_grpc.WorkflowServiceAsyncStub":
        """Raises:
        FailedPrecondition: this process has been forked since the connection was made.
        """
        if os.getpid() != self._pid:
            raise FailedPrecondition(
                f"this AsyncClient belongs to process {self._pid}: make one in each process, or use Client"
            )
        return self._stub

    async def close(self) -> None:
        await self._channel.close()


def access(api_key: str, tls_ca: str) -> Access:
    """What a client's arguments say that it shows; without any, what this process does.

    Raises:
        InvalidArgument: `tls_ca` holds no certificates, or the key has characters that no key has.
    """
    if not (api_key.isascii() and (api_key.isprintable() or not api_key)):
        raise InvalidArgument("api_key", "must have printable ASCII characters only")
    return Access(api_key, Tls.of_client(tls_ca)) if api_key or tls_ca else this_process().access


def _options(timeout_s: float) -> list[tuple[str, int | str]]:
    if not 0 < timeout_s < math.inf:
        raise InvalidArgument("timeout_s", f"must be positive, got {timeout_s}")
    names = [{"service": _SERVICE, "method": method} for method in _SAFE_TWICE]
    config = {"methodConfig": [{"name": names, "timeout": f"{timeout_s:.3f}s", "retryPolicy": _RETRY}]}
    return [*CHANNEL_OPTIONS, ("grpc.service_config", json.dumps(config))]
