"""What operators ask of a worker's cache, as far as vLLM tells."""

from typing import Any

from pbkv_cluster.core.errors import FailedPrecondition
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.integrations.vllm_worker.engine.contract import EngineContract
from pbkv_cluster.integrations.vllm_worker.held_blocks import HeldBlocks
from pbkv_cluster.rpc.convert import tier_to_wire
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc

POLICY = "vllm"  # what a status calls the policy: vLLM's own


def store_stat(engine: EngineContract, held: HeldBlocks) -> store_pb2.StoreStat:
    """The tier that vLLM has itself. What it does not tell, such as blocks in use and a guard's counts, is absent."""
    shape = engine.shape
    ours = shape.block_tokens // BLOCK_TOKENS  # blocks of the cluster in one of vLLM
    capacity = shape.gpu_blocks * ours
    gpu = store_pb2.TierStat(
        tier=tier_to_wire(Tier.GPU),
        capacity_blocks=capacity,
        used_blocks=held.count(Tier.GPU),
        block_bytes=shape.block_bytes // ours,
        ready_blocks=capacity,
    )
    return store_pb2.StoreStat(tiers=[gpu], policy=POLICY)


class VllmStoreServicer(store_pb2_grpc.StoreServiceServicer):
    """Answers what can be answered, and says of the rest that vLLM does not tell."""

    def __init__(self, engine: EngineContract, held: HeldBlocks) -> None:
        self._engine = engine
        self._held = held

    async def Stat(self, request: store_pb2.StatRequest, context: Any) -> store_pb2.StatResponse:  # noqa: N802
        return store_pb2.StatResponse(store=store_stat(self._engine, self._held))

    async def Prefetch(self, request: store_pb2.PrefetchRequest, context: Any) -> store_pb2.PrefetchResponse:  # noqa: N802
        raise FailedPrecondition("vLLM loads nothing ahead of its use")

    async def LeaseBlocks(  # noqa: N802
        self, request: store_pb2.LeaseBlocksRequest, context: Any
    ) -> store_pb2.LeaseBlocksResponse:
        raise FailedPrecondition("vLLM keeps no block longer because it is asked to")

    async def ReleaseBlocks(  # noqa: N802
        self, request: store_pb2.ReleaseBlocksRequest, context: Any
    ) -> store_pb2.ReleaseBlocksResponse:
        return store_pb2.ReleaseBlocksResponse()  # there are no leases

    async def LeaseArena(  # noqa: N802
        self, request: store_pb2.LeaseArenaRequest, context: Any
    ) -> store_pb2.LeaseArenaResponse:
        raise FailedPrecondition("a worker has no arena; ask the node's host store")

    async def Clear(self, request: store_pb2.ClearRequest, context: Any) -> store_pb2.ClearResponse:  # noqa: N802
        held = self._held
        blocks, times = held.count(Tier.GPU), held.times_emptied
        if not await self._engine.clear():
            raise FailedPrecondition("vLLM empties its cache only while it runs no step")
        if held.times_emptied == times:  # vLLM has not told of it, which it does with the next request only
            held.emptied()
        return store_pb2.ClearResponse(dropped_blocks=blocks)

    async def ListCache(  # noqa: N802
        self, request: store_pb2.ListCacheRequest, context: Any
    ) -> store_pb2.ListCacheResponse:
        raise FailedPrecondition("vLLM does not tell which workflows use its blocks")

    async def CheckCache(  # noqa: N802
        self, request: store_pb2.CheckCacheRequest, context: Any
    ) -> store_pb2.CheckCacheResponse:
        return store_pb2.CheckCacheResponse()  # the worker has no blocks in host memory of its own

    async def ExplainCache(  # noqa: N802
        self, request: store_pb2.ExplainCacheRequest, context: Any
    ) -> store_pb2.ExplainCacheResponse:
        raise FailedPrecondition("vLLM does not tell why it keeps a block")
