"""The host store on the wire: regions of the arena for workers, and calls passed on to all workers of the node."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from grpc import aio

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc
from pbkv_cluster.store.arena.arena import Arena

T = TypeVar("T")
# Only type checkers see the class of the stub.
Call = Callable[["store_pb2_grpc.StoreServiceAsyncStub"], Awaitable[T]]
# The addresses of this node's workers by id, as the cluster's directory has them; raises Unavailable.
WorkerAddresses = Callable[[], Awaitable[Mapping[str, str]]]


class HostStoreServicer(store_pb2_grpc.StoreServiceServicer):
    """Answers for all caches of one node together.

    A worker's address is the one in the directory, which only members can write to: whoever asks for a region could otherwise
    have calls sent wherever they like.
    """

    def __init__(self, arena: Arena, workers: WorkerAddresses, worker_timeout_s: float) -> None:
        self._arena = arena
        self._workers = workers
        self._worker_timeout_s = worker_timeout_s
        self._arena_in_use = asyncio.Lock()

    async def LeaseArena(  # noqa: N802
        self, request: store_pb2.LeaseArenaRequest, context: Any
    ) -> store_pb2.LeaseArenaResponse:
        worker_id = checks.required_name("worker_id", request.worker_id)
        async with self._arena_in_use:  # in a thread: reserving many gigabytes takes a while
            region = await asyncio.to_thread(self._arena.acquire, worker_id, request.bytes, request.may_be_less)
        return store_pb2.LeaseArenaResponse(
            path=str(self._arena.path), offset=region.offset, bytes=region.size, lease_s=self._arena.ttl_s
        )

    async def Stat(self, request: store_pb2.StatRequest, context: Any) -> store_pb2.StatResponse:  # noqa: N802
        return store_pb2.StatResponse(
            store=_sum([answer.store for answer in await self._call_workers(lambda stub: stub.Stat(request))])
        )

    async def Prefetch(self, request: store_pb2.PrefetchRequest, context: Any) -> store_pb2.PrefetchResponse:  # noqa: N802
        answers = await self._call_workers(lambda stub: stub.Prefetch(request))
        return store_pb2.PrefetchResponse(
            loaded_tokens=sum(answer.loaded_tokens for answer in answers),
            resident_tokens=max((answer.resident_tokens for answer in answers), default=0),
        )

    async def Clear(self, request: store_pb2.ClearRequest, context: Any) -> store_pb2.ClearResponse:  # noqa: N802
        answers = await self._call_workers(lambda stub: stub.Clear(request))
        return store_pb2.ClearResponse(dropped_blocks=sum(answer.dropped_blocks for answer in answers))

    async def _call_workers(self, call: Call[T]) -> list[T]:
        """Calls every worker that has a region and is in the directory, all at once.

        Raises:
            Unavailable: a worker or the directory does not answer.
        """
        async with self._arena_in_use:
            regions = await asyncio.to_thread(self._arena.regions)
        addresses = {address for worker_id, address in (await self._workers()).items() if worker_id in regions}
        return list(await asyncio.gather(*(self._call_worker(address, call) for address in sorted(addresses))))

    async def _call_worker(self, address: str, call: Call[T]) -> T:
        async with connect(address) as channel:
            try:
                async with asyncio.timeout(self._worker_timeout_s):
                    return await call(store_pb2_grpc.StoreServiceStub(channel))
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
            total.ready_blocks += tier.ready_blocks
            total.block_bytes = tier.block_bytes
    policies = sorted({stat.policy for stat in stats})
    return store_pb2.StoreStat(tiers=tiers.values(), policy=",".join(policies), decisions=decisions)
