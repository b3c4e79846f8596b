"""What a client asks of the caches besides steps: to load blocks ahead of their use, and to lease them."""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pbkv_cluster.client.connection import AsyncConnection, Connection
from pbkv_cluster.client.requests import Prompt, prompt_message
from pbkv_cluster.core.errors import InvalidArgument, PbkvError
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.convert import tiers_from_wire
from pbkv_cluster.rpc.v1 import store_pb2


@dataclass(frozen=True, slots=True)
class Prefetched:
    """Tokens of a prompt, or of what a workflow has used, on the worker that has most of them."""

    loaded_tokens: int  # that are on their way to a GPU now
    resident_tokens: int  # that the GPU has, those on their way among them
    tokens: int  # in whole blocks
    tiers: Mapping[Tier, int]  # those that are cached, by the fastest tier that has them; on their way: by where they come from
    leased_tokens: int  # until `within_s` is over
    lease_id: str  # for `release_blocks`, where they are no longer needed sooner; empty: there is no lease
    tenant: str  # whose lease it is
    staged_tokens: int  # that are on their way to host memory, since the GPU has no room for them


@dataclass(frozen=True, slots=True)
class BlockLease:
    """A lease of cached blocks; a context manager that ends it."""

    connection: Connection
    id: str
    tenant: str
    cached_tokens: int  # of the prompt, when the lease began
    leased_tokens: int  # the first of them

    def release(self) -> int:
        """Ends the lease. Returns the tokens that it was for and that are cached still; 0 if it has ended already.

        Raises:
            Unavailable: the gateway or a worker is not reachable.
        """
        answer: store_pb2.ReleaseBlocksResponse = self.connection.call("ReleaseBlocks", release_request(self.id, self.tenant))
        return answer.released_tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # An error of the body matters more than one of ending the lease, which its time does in any case.
        with suppress(*([] if error is None else [PbkvError])):
            self.release()


@dataclass(frozen=True, slots=True)
class AsyncBlockLease:
    """As `BlockLease`, for asyncio."""

    connection: AsyncConnection
    id: str
    tenant: str
    cached_tokens: int
    leased_tokens: int

    async def release(self) -> int:
        """As `BlockLease.release`."""
        answer: store_pb2.ReleaseBlocksResponse = await self.connection.call(
            "ReleaseBlocks", release_request(self.id, self.tenant)
        )
        return answer.released_tokens

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(*([] if error is None else [PbkvError])):  # as in `BlockLease.__exit__`
            await self.release()


def prefetch_request(
    prompt: Prompt | None, tenant: str, workflow_id: str, agent: str, within_s: float
) -> store_pb2.PrefetchRequest:
    """Raises:
    InvalidArgument: a value cannot be written on the wire.
    """
    try:
        return store_pb2.PrefetchRequest(
            prompt=None if prompt is None else prompt_message(prompt),
            tenant=tenant,
            workflow_id=workflow_id,
            agent_id=agent,
            within_s=within_s,
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgument("prefetch", str(error)) from error


def prefetched(answer: store_pb2.PrefetchResponse) -> Prefetched:
    return Prefetched(
        answer.loaded_tokens,
        answer.resident_tokens,
        answer.tokens,
        tiers_from_wire(answer.tiers),
        answer.leased_tokens,
        answer.lease_id,
        answer.tenant,
        answer.staged_tokens,
    )


def lease_request(prompt: Prompt, lease_s: float, tenant: str, workflow_id: str, lease_id: str) -> store_pb2.LeaseBlocksRequest:
    """An id is drawn here if there is none, so that the call may be made twice.

    Raises:
        InvalidArgument: a value cannot be written on the wire.
    """
    try:
        return store_pb2.LeaseBlocksRequest(
            lease_id=lease_id or uuid.uuid4().hex,
            prompt=prompt_message(prompt),
            tenant=tenant,
            workflow_id=workflow_id,
            lease_s=lease_s,
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgument("lease", str(error)) from error


def release_request(lease_id: str, tenant: str) -> store_pb2.ReleaseBlocksRequest:
    return store_pb2.ReleaseBlocksRequest(lease_id=lease_id, tenant=tenant)
