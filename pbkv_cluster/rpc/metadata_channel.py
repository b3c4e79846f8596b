"""A channel whose calls all carry the same metadata."""

from collections.abc import Callable
from typing import Any

Metadata = tuple[tuple[str, str], ...]


class MetadataChannel:
    """Wraps a channel, with asyncio or without.

    gRPC's own ways are not for this: call credentials are refused on plain connections, and interceptors make other objects of
    the calls, which behave differently.
    """

    def __init__(self, channel: Any, metadata: Metadata) -> None:
        """`metadata` goes with every call, before that of the call itself."""
        self._channel = channel
        self._metadata = metadata

    def unary_unary(self, *method: Any, **options: Any) -> Callable[..., Any]:
        return self._with_metadata(self._channel.unary_unary(*method, **options))

    def unary_stream(self, *method: Any, **options: Any) -> Callable[..., Any]:
        return self._with_metadata(self._channel.unary_stream(*method, **options))

    def stream_unary(self, *method: Any, **options: Any) -> Callable[..., Any]:
        return self._with_metadata(self._channel.stream_unary(*method, **options))

    def stream_stream(self, *method: Any, **options: Any) -> Callable[..., Any]:
        return self._with_metadata(self._channel.stream_stream(*method, **options))

    def _with_metadata(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def with_metadata(*request: Any, metadata: Any = None, **options: Any) -> Any:
            return call(*request, metadata=(*self._metadata, *(metadata or ())), **options)

        return with_metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def __enter__(self) -> "MetadataChannel":
        self._channel.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._channel.__exit__(*error)

    async def __aenter__(self) -> "MetadataChannel":
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._channel.__aexit__(*error)
