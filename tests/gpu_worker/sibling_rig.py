"""Two workers of one node, and how long they believe that a prefill takes."""

import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.locations.residency import SHARED
from pbkv_cluster.gpu_worker.kv import other_workers
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.block_map import BlockMap
from tests.gpu_worker.test_restored_worker import ARENA, POOLS, At
from tests.gpu_worker.worker_rig import Rig, config, host_store, serving

PROMPT = list(range(10, 80))  # four full blocks and some tokens


def settings(model: Path, **sections: Any) -> Config:
    engine = {**POOLS, **sections.pop("engine", {})}
    return config(model, engine=engine, cache={"write_through": True, "policy": "lru", **sections.pop("cache", {})})


class Node:
    """Two workers on one node; what the first stores, the second is told."""

    def __init__(self, arena: Arena, first: Rig, second: Rig, blocks: BlockMap) -> None:
        self.arena = arena
        self.first = first
        self.second = second
        self.blocks = blocks

    async def tell(self) -> None:
        """The second learns what the first holds."""
        self.blocks.replace(("first", "1"), "node", await self.first.held())


@asynccontextmanager
async def node(config: Config, at_once: bool = False) -> AsyncIterator[Node]:
    """With `at_once`, the second learns all that the first tells of its blocks, when it does."""
    blocks = BlockMap(SHARED)
    async with AsyncExitStack() as stack:
        arena, address = await stack.enter_async_context(host_store(ARENA))
        blocks.replace(("first", "1"), "node", ())
        listener = (lambda label, where: blocks.change(("first", "1"), [(label.key, where.pack())])) if at_once else None
        first = await stack.enter_async_context(serving(config, "first", host_store=At(address), on_change=listener))
        second = await stack.enter_async_context(
            serving(config, "second", host_store=At(address), blocks=blocks, node_id="node")
        )
        yield Node(arena, first, second, blocks)


def hold_reads(patch: pytest.MonkeyPatch) -> threading.Event:
    """Reads from other workers wait, from now on, until the event is set."""
    go = threading.Event()
    read = other_workers.OtherWorkers.read

    def late(self: Any, *arguments: Any) -> list[bool]:
        go.wait(600)
        return read(self, *arguments)

    patch.setattr(other_workers.OtherWorkers, "read", late)
    return go
