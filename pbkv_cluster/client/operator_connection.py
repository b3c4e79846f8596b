"""A connection of an operator's command to a gateway."""

from types import TracebackType
from typing import Self

from pbkv_cluster.rpc.channel import connect


class OperatorConnection:
    """A context manager that closes the connection. Calls raise the errors of `core.errors`."""

    def __init__(self, endpoint: str) -> None:
        """Args:
        endpoint: the gateway's host:port. The first call connects to it.

        Raises:
            InvalidArgument: `endpoint` is no host:port.
        """
        self._channel = connect(endpoint, "endpoint")

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
