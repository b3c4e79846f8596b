"""Explains to operators why a block lies where it does, in portions, so that the engine's steps never wait long for it."""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice

from pbkv_cluster.cache.decisions.log import Decision
from pbkv_cluster.cache.explanation import FOUND_MAX, BlockExplanation, BlockPlace, BlockSearch, matching
from pbkv_cluster.cache.tree.prefix_tree import lineage
from pbkv_cluster.core import checks
from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.gpu_worker.cache_listing import decision_to_wire, entry_to_wire
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.rpc.convert import tier_to_wire
from pbkv_cluster.rpc.v1 import store_pb2

_PORTION = 500  # nodes, or candidates for eviction: about a millisecond
_LIMIT = 20
_MAX_LIMIT = 1000


async def explain_cache(
    thread: EngineThread, request: store_pb2.ExplainCacheRequest, worker_id: str, clock: Clock
) -> store_pb2.ExplainCacheResponse:
    """What a request asks for.

    Args:
        thread: the engine's.
        request: see proto/pbkv/v1/store.proto.
        worker_id: for the answer.
        clock: the engine's.

    Raises:
        InvalidArgument: names the field that is out of its range.
        Unavailable: the engine has ended.
    """
    limit = checks.in_range("limit", request.limit, 0, _MAX_LIMIT) or _LIMIT
    if request.WhichOneof("about") == "workflow_id":
        workflow = checks.required_name("workflow_id", request.workflow_id)
        about = [each for each in await _decisions(thread) if workflow in each.workflows]
        return _answer(about, limit, worker_id, clock)
    prefix = _prefix(request.block)
    decisions = await _decisions(thread)
    search = await thread.call(lambda engine: BlockSearch(engine.cache, prefix))
    while await thread.call(lambda _: search.look(_PORTION)):
        pass
    keys = await asyncio.to_thread(_keys, search.found, decisions, prefix)
    if len(keys) != 1:
        return store_pb2.ExplainCacheResponse(keys=[key.hex() for key in keys])
    (key,) = keys
    answer = _answer(await asyncio.to_thread(_about, decisions, key), limit, worker_id, clock)
    answer.keys.append(key.hex())
    explanation = await thread.call(lambda engine: _explanation(engine, search, key, clock.now()))
    if explanation is not None:
        while await thread.call(lambda _: explanation.look(_PORTION)):
            pass
        policy = await thread.call(lambda engine: engine.policy)
        answer.blocks.append(
            store_pb2.CachedBlock(
                worker_id=worker_id,
                run=entry_to_wire(explanation.run, worker_id),
                policy=policy,
                places=map(_place_to_wire, explanation.places),
            )
        )
    return answer


def _prefix(text: str) -> str:
    """The beginning of a key, in lower case.

    Raises:
        InvalidArgument: it is none.
    """
    prefix = text.lower()
    if not 0 < len(prefix) <= 2 * KEY_BYTES or set(prefix) - set("0123456789abcdef"):
        raise InvalidArgument("block", f"must be a block key in hex, or its beginning, got {text[: 4 * KEY_BYTES]!r}")
    return prefix


async def _decisions(thread: EngineThread) -> Sequence[Decision]:
    return await thread.call(lambda engine: engine.cache.tiers.log.latest_first())


def _keys(found: Iterable[bytes], decisions: Sequence[Decision], prefix: str) -> Sequence[bytes]:
    """The keys that begin so, of blocks that are cached or that a decision was about; at most FOUND_MAX."""
    keys = dict.fromkeys(found)
    for decision in decisions:
        keys.update(dict.fromkeys(matching(decision.keys, prefix)))
        if len(keys) >= FOUND_MAX:
            break
    return list(islice(keys, FOUND_MAX))


def _about(decisions: Sequence[Decision], key: bytes) -> list[Decision]:
    return [each for each in decisions if each.is_about(key)]


def _explanation(engine: Engine, search: BlockSearch, key: bytes, now: float) -> BlockExplanation | None:
    """Of the block that a search has found; None: it found none, or it has left the cache since."""
    node = search.found.get(key)
    for part in () if node is None else lineage(node):  # its node may have been split since
        for block in range(part.blocks):
            if part.key(block) == key:
                return BlockExplanation(engine.cache, part, block, now)
    return None


def _answer(decisions: Sequence[Decision], limit: int, worker_id: str, clock: Clock) -> store_pb2.ExplainCacheResponse:
    now = clock.now()
    return store_pb2.ExplainCacheResponse(decisions=[decision_to_wire(each, worker_id, now) for each in decisions[:limit]])


def _place_to_wire(place: BlockPlace) -> store_pb2.CachedBlock.Place:
    return store_pb2.CachedBlock.Place(
        tier=tier_to_wire(place.tier),
        slot=place.slot,
        value=place.value,
        standing=place.standing.value,
        ahead=place.ahead,
        candidates=place.candidates,
        is_copy=place.is_copy,
        by_lru=place.by_lru,
    )
