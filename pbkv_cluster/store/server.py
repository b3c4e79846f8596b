"""The host store's gRPC server: leases regions of the arena, and passes on to the node's workers what concerns them all."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from grpc import aio

from pbkv_cluster.core.errors import InvalidArgument, Unavailable
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc
from pbkv_cluster.store.arena.arena import Arena

T = TypeVar("T")
Ask = Callable[["store_pb2_grpc.StoreServiceAsyncStub"], Awaitable[T]]  # generated stubs have that class for type checkers only

_TIMEOUT_S = 10.0


class HostStoreServicer(store_pb2_grpc.StoreServiceServicer):
    """All caches of one node as one."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._leasing = asyncio.Lock()

    async def LeaseArena(  # noqa: N802
        self, request: store_pb2.LeaseArenaRequest, context: Any
    ) -> store_pb2.LeaseArenaResponse:
        if not request.worker_id:
            raise InvalidArgument("worker_id", "must not be empty")
        async with self._leasing:  # off the event loop: to reserve many gigabytes takes a while
            region = await asyncio.to_thread(self._arena.lease, request.worker_id, request.bytes, request.worker_address)
        return store_pb2.LeaseArenaResponse(
            path=str(self._arena.path), offset=region.offset, bytes=region.size, lease_s=self._arena.lease_s
        )

    async def Stat(self, request: store_pb2.StatRequest, context: Any) -> store_pb2.StatResponse:  # noqa: N802
        return store_pb2.StatResponse(store=_sum([answer.store for answer in await self._all(lambda stub: stub.Stat(request))]))

    async def Prefetch(self, request: store_pb2.PrefetchRequest, context: Any) -> store_pb2.PrefetchResponse:  # noqa: N802
        answers = await self._all(lambda stub: stub.Prefetch(request))
        return store_pb2.PrefetchResponse(
            loaded_tokens=sum(answer.loaded_tokens for answer in answers),
            resident_tokens=max((answer.resident_tokens for answer in answers), default=0),
        )

    async def Clear(self, request: store_pb2.ClearRequest, context: Any) -> store_pb2.ClearResponse:  # noqa: N802
        answers = await self._all(lambda stub: stub.Clear(request))
        return store_pb2.ClearResponse(dropped_blocks=sum(answer.dropped_blocks for answer in answers))

    async def _all(self, ask: Ask[T]) -> list[T]:
        """Asks every worker of the node.

        Raises:
            Unavailable: one of them does not answer.
        """
        async with self._leasing:
            regions = await asyncio.to_thread(self._arena.regions)
        addresses = {region.address for region in regions.values() if region.address}
        return list(await asyncio.gather(*(_ask(address, ask) for address in sorted(addresses))))


async def _ask(address: str, ask: Ask[T]) -> T:
    async with connect(address) as channel:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await ask(store_pb2_grpc.StoreServiceStub(channel))
        except aio.AioRpcError as error:
            cause = from_rpc(error)
            if isinstance(cause, Unavailable):
                raise Unavailable(f"the worker at {address} cannot be asked: {cause}") from error
            raise cause from error
        except TimeoutError as error:
            raise Unavailable(f"the worker at {address} does not answer") from error


def _sum(stats: list[store_pb2.StoreStat]) -> store_pb2.StoreStat:
    tiers: dict[int, store_pb2.TierStat] = {}
    decisions: Counter[str] = Counter()
    for stat in stats:
        decisions.update(stat.decisions)
        for tier in stat.tiers:
            total = tiers.setdefault(tier.tier, store_pb2.TierStat(tier=tier.tier))
            total.capacity_blocks += tier.capacity_blocks
            total.used_blocks += tier.used_blocks
            total.locked_blocks += tier.locked_blocks
            total.block_bytes = tier.block_bytes
    policies = sorted({stat.policy for stat in stats})
    return store_pb2.StoreStat(tiers=tiers.values(), policy=",".join(policies), decisions=decisions)


class HostStore:
    """The host store of one node as a plain object."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._server = RpcServer()
        self._server.add(
            store_pb2.DESCRIPTOR.services_by_name["StoreService"],
            store_pb2_grpc.add_StoreServiceServicer_to_server,
            HostStoreServicer(arena),
        )

    async def start(self, host: str, port: int = 0) -> str:
        """Serves; returns the address.

        Raises:
            StartupError: the port cannot be had.
        """
        return await self._server.start(host, port)

    async def stop(self) -> None:
        """Ends the server and removes the arena."""
        await self._server.stop()
        self._arena.close()
