"""Time and memory of the index of a cluster: in Redis, and in the mirror that gateways and workers ask.

Eight workers hold 125,000 blocks each, or a tenth of that with `--quick`. The prompt has 4,096 tokens; one worker holds all of
it, the others half of it. Times are medians.
"""

import asyncio
import random
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from statistics import median
from time import perf_counter

from redis.asyncio import Redis

from benchmarks.report import Figure
from pbkv_cluster.core.blocks import KEY_BYTES, Namespace, block_keys
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.tokens import TOKEN_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.block_map import BlockMap, WorkerKey
from pbkv_cluster.store.cluster_index import BlockIndex, RedisServer, connect
from pbkv_cluster.store.cluster_index.change_stream import stream_key

WORKERS, BLOCKS = 8, 1_000_000
ANNOUNCED = 1000
SPACE = Namespace("model", "revision", "float16", "layout")
GPU = Residency(frozenset({Tier.GPU})).pack()


def figures(quick: bool) -> list[Figure]:
    return asyncio.run(_measure(BLOCKS // 10 if quick else BLOCKS, 20 if quick else 100))


async def _measure(blocks: int, samples: int) -> list[Figure]:
    generator = random.Random(0)
    prompt = block_keys(SPACE, generator.randbytes(4096 * TOKEN_BYTES))
    workers = [(f"worker-{number}", "incarnation") for number in range(WORKERS)]
    with RedisServer.resolve("") as server:
        client = connect(server.url, timeout_s=30.0)
        index, mirror = BlockIndex(client, "benchmark", 600.0), BlockMap()
        before = await _used_bytes(client)
        mirrored = 0
        for number, worker in enumerate(workers):
            held = dict(_blocks(generator, blocks // WORKERS))
            held |= dict.fromkeys(prompt if number == 0 else prompt[: len(prompt) // 2], GPU)
            await index.announce(*worker, held)
            mirrored += _traced(mirror, worker, held)
        in_redis = (await _used_bytes(client) - before) / len(mirror)
        expected = await index.match(prompt, workers)
        assert [match[:2] for match in mirror.match(prompt, workers)] == [match[:2] for match in expected]
        lookup = median([_seconds(lambda: mirror.match(prompt, workers)) for _ in range(10 * samples)])
        cold = await _median(samples, lambda: index.match(prompt, workers))
        changes = [dict(_blocks(generator, ANNOUNCED)) for _ in range(samples)]
        announce = await _median(samples, lambda: index.publish(*workers[0], changes.pop()))
        stream = int(await client.memory_usage(stream_key("benchmark"), samples=0) or 0)
        entries = await client.xlen(stream_key("benchmark"))
        await client.aclose()
    return [
        Figure(f"look up 4,096 tokens in the mirror, {WORKERS} workers, {blocks:,} blocks", 1e6 * lookup, "µs", at_most=50),
        Figure("the same in Redis", 1e3 * cold, "ms", at_most=1),
        Figure(f"announce {ANNOUNCED:,} changed blocks", 1e3 * announce, "ms", at_most=10),
        Figure("Redis memory of a block", in_redis, "bytes", at_most=300),
        Figure("memory of a block in the mirror", mirrored / len(mirror), "bytes", at_most=300),
        Figure(
            f"the change stream after {samples * ANNOUNCED:,} changes, in {entries} entries", stream / 1e6, "MB", at_most=32
        ),
    ]


def _blocks(generator: random.Random, number: int) -> Iterator[tuple[bytes, int]]:
    """Half of them on the GPU, half in host memory."""
    for slot in range(number):
        yield generator.randbytes(KEY_BYTES), GPU if slot % 2 else Residency(frozenset({Tier.HOST}), slot).pack()


def _traced(mirror: BlockMap, worker: WorkerKey, held: dict[bytes, int]) -> int:
    """Bytes that a worker's blocks take in the mirror, their keys and numbers included."""
    tracemalloc.start()
    # Copies, as those that arrive from Redis are: an object that is only referred to would not count.
    copies = [(bytes(bytearray(key)), int.from_bytes(packed.to_bytes(5, "little"), "little")) for key, packed in held.items()]
    mirror.replace(worker, "node", copies)
    del copies
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken


async def _used_bytes(client: "Redis") -> int:
    return int((await client.info("memory"))["used_memory"])


async def _median(samples: int, run: Callable[[], Awaitable[object]]) -> float:
    taken = []
    for _ in range(samples):
        start = perf_counter()
        await run()
        taken.append(perf_counter() - start)
    return median(taken)


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start
