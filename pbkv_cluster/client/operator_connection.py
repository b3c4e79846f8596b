"""A connection of an operator's command to a gateway, and the errors of its calls."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import grpc

from pbkv_cluster.client.endpoints import first_listening, parse_endpoints
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.errors import from_rpc


class OperatorConnection:
    """A context manager that closes the connection. Calls raise the errors of `core.errors`."""

    def __init__(self, endpoint: str | Sequence[str]) -> None:
        """Args:
        endpoint: see `parse_endpoints`. Of several, the first at which a gateway listens now is called.

        Raises:
            InvalidArgument: `endpoint` names none.
        """
        self._channel = connect(first_listening(parse_endpoints(endpoint)), "endpoint")

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raises a failed call as the error of `core.errors` that the gateway meant."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc(error) from error
