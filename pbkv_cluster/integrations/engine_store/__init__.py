"""The store for foreign engines: blocks of bytes by key, in the node's arena, for vLLM, SGLang, LMCache or whoever has some.

An engine's process opens an `EngineStore`. It leases a region of the node's arena, and fills it with the blocks that it is
given; it reads those of all other engines of the node where they lie, and, where a Redis is named, those of other nodes:

    namespace = Namespace(model, revision, dtype, layout, block_tokens, rank)
    store = EngineStore(StoreSettings.of({"region_bytes": 4 << 30}), namespace, block_bytes=2 << 20)
    store.put(keys, blocks)                    # returns at once: a future of which blocks are in the store
    store.leading(keys)                        # how many of the first blocks can be read now, from anywhere; microseconds
    store.get(keys, targets).result(5.0)       # which blocks have been copied to the targets, with the right checksum
    store.close()

A key is what the engine calls a block, 16 to 32 bytes (such as a hash of all tokens up to its end). The namespace holds all
else that decides a block's bytes, so that wrong ones can never match; a call may name another one than the store's (a tenant's
salt, another rank). All blocks of a store have the same length. Nothing here raises into the engine, but wrong settings when a
store is opened: a failure is a miss, counted in `counts` and logged. A damaged block is a miss, too.

    settings.py             where the store is and how large; checked, with the field's name in each error
    engine_store.py         `EngineStore`: what an engine calls
    block_names.py          an engine's keys as keys of blocks in the arena
    own_region.py           this engine's region: what it holds, what is evicted, what must stay while it is read
    eviction.py             which block goes first: the one used longest ago that no other block continues
    siblings.py             the regions of the node's other engines
    loading.py              reads blocks from wherever they are, the nearest first
    outcomes.py             what became of blocks; where errors end
    copy_queue.py           threads that copy, and the bytes that may wait for them
    node_link.py            a thread that leases the region, renews it, and announces the blocks
    other_nodes.py          blocks of other nodes: the index in Redis, and their host stores
    node_store/process.py   a host store of its own for a node where `pbkv serve` does not run
    node_store/launcher.py  finds that process by name, or starts it
    node_store/files.py     where it is found
"""

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.integrations.engine_store.engine_store import EngineStore
from pbkv_cluster.integrations.engine_store.own_region import BlockWrite
from pbkv_cluster.integrations.engine_store.settings import StoreSettings

__all__ = ["BlockWrite", "EngineStore", "Namespace", "StoreSettings"]
