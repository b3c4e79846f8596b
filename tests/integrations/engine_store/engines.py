"""Stores of engines on nodes of their own, whose host stores run in threads of this process."""

import asyncio
import contextlib
import mmap
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pbkv_cluster.integrations.engine_store import EngineStore, Namespace, StoreSettings
from pbkv_cluster.integrations.engine_store.node_store.files import StoreFiles
from pbkv_cluster.integrations.engine_store.node_store.launcher import running_address
from pbkv_cluster.integrations.engine_store.node_store.process import serve
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.arena.slots import Bytes, SlotReader
from pbkv_cluster.store.region_lease import lease_region
from tests.polling import wait_for

BLOCK = 64 << 10
SPACE = Namespace("model", "revision", "float32", "layout", 32, "0/1")


def settings(**options: Any) -> StoreSettings:
    """Of a node that no other test has."""
    return StoreSettings.of(
        {"name": uuid.uuid4().hex, "region_bytes": 2 << 20, "arena_bytes": 16 << 20, "redis_url": "", **options}
    )


@contextlib.contextmanager
def node(of: StoreSettings) -> Iterator[StoreSettings]:
    """Runs the node's host store."""
    loop, stopped = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(of, stopped),))
    thread.start()
    files = StoreFiles(of.name)
    wait_for(lambda: bool(files.address()))
    try:
        yield of
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


@contextlib.contextmanager
def engine(of: StoreSettings, rank: str = "0/1", reads_only: bool = False) -> Iterator[EngineStore]:
    """Opens the store of one engine's process."""
    store = EngineStore(of, replace(SPACE, rank=rank), BLOCK, reads_only)
    try:
        yield store
    finally:
        store.close()


def damage(name: str, owner: str, block_bytes: int, only: int | None = None) -> int:
    """Changes the last byte of blocks in an engine's region, and nothing else.

    Args:
        name: of the node's store.
        owner: of the region.
        block_bytes: of each block.
        only: number of the one that is changed, in the order of slots; by default all are.

    Returns:
        How many were changed.
    """
    address = running_address(name)
    assert address is not None
    region = asyncio.run(lease_region(address, owner, 0))
    with open(region.path, "r+b") as file, mmap.mmap(file.fileno(), region.bytes, offset=region.offset) as memory:
        layout = RegionLayout(RegionLayout(0, block_bytes).slots_in(region.bytes), block_bytes)
        with memoryview(memory) as view:
            slots = [slot for slot, _ in SlotReader(view, layout).headers()]
        for slot in slots if only is None else slots[only : only + 1]:
            memory[layout.payloads + (slot + 1) * block_bytes - 1] ^= 1
        return len(slots) if only is None else 1


def key(number: int) -> bytes:
    """An engine's key."""
    return number.to_bytes(4, "little") * 8


def keys(*numbers: int) -> list[bytes]:
    return [key(number) for number in numbers]


def block(number: int) -> Bytes:
    """Bytes that never occur in another block."""
    return np.full(BLOCK // 8, number, np.uint64).view(np.uint8)


def put(store: EngineStore, *numbers: int, **options: Any) -> list[bool]:
    """Stores consecutive blocks and waits until they are there."""
    return store.put(keys(*numbers), [block(number) for number in numbers], **options).result(10.0)


def got(store: EngineStore, *numbers: int, **options: Any) -> list[int | None]:
    """The number that each block's bytes tell; None where there was none."""
    targets = [np.zeros(BLOCK, np.uint8) for _ in numbers]
    found = store.get(keys(*numbers), targets, **options).result(10.0)
    numbers_found = []
    for target, is_there in zip(targets, found, strict=True):
        words = target.view(np.uint64)
        assert not is_there or (words == words[0]).all()
        numbers_found.append(int(words[0]) if is_there else None)
    return numbers_found
