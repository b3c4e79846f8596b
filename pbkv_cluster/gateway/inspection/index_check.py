"""Compares the cluster index with what the workers hold.

The index is always a moment late, so that one look finds differences that are none. What two looks find, some time apart, with
the same block, slot and tiers, is a fault: nothing is on its way that would mend it.
"""

import asyncio
from enum import StrEnum
from typing import NamedTuple

import grpc

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.gateway.routing.worker import Worker
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import worker_pb2, worker_pb2_grpc
from pbkv_cluster.store.cluster_index import BlockIndex

_TIMEOUT_S = 600.0  # of one look at one worker
_DIFFERENCES_MAX = 100_000  # that one look keeps


class Problem(StrEnum):
    """How the index and a worker differ about a block."""

    UNBACKED = "unbacked"  # the index says that it lies in a slot of host memory in which it does not lie
    MISSING = "missing"  # the worker holds it, and the index lacks it
    MISPLACED = "misplaced"  # the index names other tiers or another slot than the worker


class Difference(NamedTuple):
    """About one block."""

    worker_id: str
    key: bytes
    problem: Problem
    indexed: int  # packed residency; 0: the index lacks it
    held: int  # likewise; 0: not asked for


class IndexReport(NamedTuple):
    """What two looks have found."""

    indexed_blocks: int
    held_blocks: int
    changing_blocks: int  # that differed at one of the two looks only
    lasting: list[Difference]


class IndexCheck:
    """Looks twice at every worker that the gateway knows, one after the other."""

    def __init__(self, index: BlockIndex, pool: WorkerPool, pause_s: float) -> None:
        """Args:
        index: of the cluster.
        pool: whose workers are asked.
        pause_s: seconds between the two looks: long enough for changes to arrive in the index.
        """
        self._index = index
        self._pool = pool
        self._pause_s = pause_s

    async def run(self) -> IndexReport:
        """Raises:
        Unavailable: Redis or a worker does not answer.
        """
        indexed = held = 0
        looks: list[set[Difference]] = []
        for number in range(2):
            if number:
                await asyncio.sleep(self._pause_s)
            look, indexed, held = set[Difference](), 0, 0
            for worker in sorted(self._pool.known(), key=lambda each: each.key):
                here, there = await self._look(worker, look)
                indexed, held = indexed + here, held + there
            looks.append(look)
        first, second = looks
        return IndexReport(indexed, held, len(first ^ second), sorted(first & second))

    async def _look(self, worker: Worker, found: set[Difference]) -> tuple[int, int]:
        """Adds the differences about one worker. Returns how many blocks the index and the worker have."""
        entry = worker.entry
        indexed = held = 0
        async with connect(entry.address) as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            try:
                async for page in stub.ListBlocks(worker_pb2.ListBlocksRequest(), timeout=_TIMEOUT_S):
                    held += len(page.residencies)
                    keys = _keys(page)
                    known = await self._index.residencies(worker.key, keys)
                    for key, theirs, ours in zip(keys, page.residencies, known, strict=True):
                        if theirs != ours:
                            _add(found, Difference(entry.worker_id, key, _problem(ours), ours, theirs))
                async for entries in self._index.pages(worker.key):
                    blocks = {key: packed for key, packed in entries.items() if packed}
                    indexed += len(blocks)
                    page = worker_pb2.BlockPage(keys=b"".join(blocks), residencies=blocks.values())
                    unbacked = await stub.FindUnbacked(page, timeout=_TIMEOUT_S)
                    for key, packed in zip(_keys(unbacked), unbacked.residencies, strict=True):
                        _add(found, Difference(entry.worker_id, key, Problem.UNBACKED, packed, 0))
            except grpc.RpcError as error:
                raise Unavailable(f"{entry.worker_id} cannot be asked: {from_rpc(error)}") from error
        return indexed, held


def _add(found: set[Difference], difference: Difference) -> None:
    if len(found) < _DIFFERENCES_MAX:
        found.add(difference)


def _problem(indexed: int) -> Problem:
    return Problem.MISPLACED if indexed else Problem.MISSING


def _keys(page: worker_pb2.BlockPage) -> list[bytes]:
    return [page.keys[at : at + KEY_BYTES] for at in range(0, len(page.keys), KEY_BYTES)]
