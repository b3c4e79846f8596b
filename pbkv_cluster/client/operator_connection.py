"""A connection of an operator's command to a gateway."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pbkv_cluster.client.endpoints import first_listening, parse_endpoints
from pbkv_cluster.rpc.channel import connect


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
