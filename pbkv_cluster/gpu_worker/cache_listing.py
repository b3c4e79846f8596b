"""Lists and checks a worker's cache in portions, so that the engine's steps never wait long for it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice

import numpy as np

from pbkv_cluster.cache.decisions.log import Decision
from pbkv_cluster.cache.inventory import CachedBlocks, Grouping, Inventory, Order
from pbkv_cluster.core import checks
from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.pool_memory import PoolMemory
from pbkv_cluster.rpc.convert import tiers_to_wire
from pbkv_cluster.rpc.v1 import store_pb2
from pbkv_cluster.store.arena.slots import ReadResult

_PORTION = 500  # nodes: about a millisecond
_LIMIT = 20
_MAX_LIMIT = 1000
_MAX_DAMAGED = 100  # that are named

_GROUPINGS = {
    store_pb2.CACHE_GROUPING_UNSPECIFIED: Grouping.RUN,
    store_pb2.CACHE_GROUPING_RUN: Grouping.RUN,
    store_pb2.CACHE_GROUPING_WORKFLOW: Grouping.WORKFLOW,
    store_pb2.CACHE_GROUPING_AGENT: Grouping.AGENT,
}
_ORDERS = {
    store_pb2.CACHE_ORDER_UNSPECIFIED: Order.LARGEST,
    store_pb2.CACHE_ORDER_LARGEST: Order.LARGEST,
    store_pb2.CACHE_ORDER_HOTTEST: Order.HOTTEST,
}


async def list_cache(
    thread: EngineThread, request: store_pb2.ListCacheRequest, worker_id: str, now: float
) -> store_pb2.ListCacheResponse:
    """The entries that a request asks for.

    Args:
        thread: the engine's.
        request: see proto/pbkv/v1/store.proto.
        worker_id: for the entries.
        now: seconds, on the engine's clock.

    Raises:
        InvalidArgument: names the field that is out of its range.
        Unavailable: the engine has ended.
    """
    by, order = _GROUPINGS.get(request.by), _ORDERS.get(request.order)
    if by is None:
        raise InvalidArgument("by", f"unknown: {request.by}")
    if order is None:
        raise InvalidArgument("order", f"unknown: {request.order}")
    limit = checks.in_range("limit", request.limit, 0, _MAX_LIMIT) or _LIMIT
    workflow, agent = checks.name("workflow_id", request.workflow_id), checks.name("agent_id", request.agent_id)
    inventory = await thread.call(lambda engine: Inventory(engine.cache, by, order, limit, now, workflow, agent))
    while await thread.call(lambda _: inventory.look(_PORTION)):
        pass
    entries = await thread.call(lambda _: inventory.entries())
    answer = store_pb2.ListCacheResponse(
        entries=[entry_to_wire(entry, worker_id) for entry in entries], shared=tiers_to_wire(inventory.shared)
    )
    if request.last_decisions and by is Grouping.RUN:
        decisions = await thread.call(lambda engine: engine.cache.tiers.log.latest_first())
        await asyncio.to_thread(_add_last_decisions, answer, decisions, worker_id, now)
    return answer


def _add_last_decisions(answer: store_pb2.ListCacheResponse, decisions: Sequence[Decision], worker_id: str, now: float) -> None:
    wanted = {bytes.fromhex(entry.name): entry for entry in answer.entries}
    for decision in decisions:
        for key in [key for key in wanted if decision.is_about(key)]:
            wanted.pop(key).last_decision.CopyFrom(decision_to_wire(decision, worker_id, now))
        if not wanted:
            return


async def check_cache(thread: EngineThread, memory: PoolMemory) -> store_pb2.CheckCacheResponse:
    """Compares the blocks of the tiers that have checksums with them, on another thread than the engine's.

    Raises:
        Unavailable: the engine has ended.
    """
    answer = store_pb2.CheckCacheResponse()
    verify: dict[Tier, Callable[[int, bytes], ReadResult]] = {}
    if memory.host is not None:
        verify[Tier.HOST] = memory.host.slots.verify
    if memory.disk is not None:
        verify[Tier.DISK] = partial(memory.disk.verify, room=np.empty(memory.block_bytes, np.uint8))
    if not verify:
        return answer
    nodes = await thread.call(lambda engine: engine.cache.tree.walk())

    def portion(engine: Engine) -> tuple[int, list[tuple[Tier, int, bytes]]]:
        seen = list(islice(nodes, _PORTION))
        tiers = [(kind, engine.cache.tiers[kind].index) for kind in verify]
        return len(seen), [
            (kind, node.slots[tier][block], node.key(block))
            for node in seen
            for block in range(node.blocks)
            for kind, tier in tiers
            if node.holds(tier, block)
        ]

    while True:
        seen, blocks = await thread.call(portion)
        await asyncio.to_thread(_check, verify, blocks, answer)
        if seen < _PORTION:
            return answer


def _check(
    verify: Mapping[Tier, Callable[[int, bytes], ReadResult]],
    blocks: list[tuple[Tier, int, bytes]],
    answer: store_pb2.CheckCacheResponse,
) -> None:
    for kind, slot, key in blocks:
        match verify[kind](slot, key):
            case ReadResult.READ:
                answer.checked_blocks += 1
            case ReadResult.DAMAGED:
                answer.checked_blocks += 1
                answer.damaged_blocks += 1
                if len(answer.damaged) < _MAX_DAMAGED:
                    answer.damaged.append(key.hex())
            case _:
                answer.changed_blocks += 1


def entry_to_wire(entry: CachedBlocks, worker_id: str) -> store_pb2.CachedBlocks:
    """One entry of a list."""
    return store_pb2.CachedBlocks(
        name=entry.name,
        worker_id=worker_id,
        start_tokens=entry.start_tokens,
        tokens=entry.tokens,
        tiers=tiers_to_wire(entry.tiers),
        shared_tokens=entry.shared_tokens,
        workflows=entry.workflows,
        agents=entry.agents,
        in_use=entry.in_use,
        idle_s=entry.idle_s,
        recent_uses=entry.recent_uses,
        leased_s=entry.leased_s,
    )


def decision_to_wire(decision: Decision, worker_id: str, now: float) -> store_pb2.CacheDecision:
    """One decision; `now` in seconds, on the engine's clock."""
    return store_pb2.CacheDecision(
        worker_id=worker_id,
        reason=decision.reason,
        age_s=max(0.0, now - decision.at),
        blocks=decision.blocks,
        key=decision.keys[-KEY_BYTES:].hex(),
        value=decision.value,
        by_lru=decision.by_lru,
        workflows=decision.workflows,
    )
