"""Which worker holds which block, and in which of its tiers."""

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import NamedTuple

from redis.asyncio import Redis
from redis.typing import EncodableT

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.cluster_index.client import lua, redis_errors, ttl_ms

# No letter for REMOTE: blocks on another node are announced by that node.
_LETTERS = {Tier.GPU: b"g", Tier.HOST: b"h", Tier.DISK: b"d"}
# A field that cannot be a block key. It marks a hash that has all blocks of its worker, not only those that the worker has
# published since Redis came back empty.
_COMPLETE = b""
_CHUNK = 1000  # fields per transaction, which bounds the time for which one command occupies the server


class Match(NamedTuple):
    """How much of a sequence of blocks a worker holds: lengths of the leading runs, in blocks."""

    gpu_blocks: int  # on the GPU; at most `blocks`
    blocks: int  # in any tier


class BlockIndex:
    """The index of a cluster: one hash per incarnation of a worker, gone `ttl_s` seconds after the worker last wrote to it.

    Every method raises Unavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis, cluster: str, ttl_s: float) -> None:
        self._redis = redis
        self._prefix = f"pbkv:{cluster}:blocks:"
        self._ttl_ms = ttl_ms(ttl_s)
        self._match = redis.register_script(lua("match"))

    async def announce(self, worker_id: str, incarnation: str, blocks: Mapping[bytes, Set[Tier]]) -> None:
        """Replaces all blocks of a worker at once: readers see either the old ones or the new ones."""
        key = self._key(worker_id, incarnation)
        draft = key + ":draft"
        with redis_errors():
            await self._redis.unlink(draft)
            await self._write(draft, blocks)
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(draft, _COMPLETE, b"")
                pipe.unlink(key)
                pipe.rename(draft, key)
                pipe.pexpire(key, self._ttl_ms)
                await pipe.execute()

    async def publish(self, worker_id: str, incarnation: str, changes: Mapping[bytes, Set[Tier]]) -> bool:
        """Enters changed blocks with the tiers that hold them now, none for a block that is gone, and renews the worker.

        Returns:
            False if the index lacks other blocks of the worker: it lost them, or they were never announced.
        """
        with redis_errors():
            return await self._write(self._key(worker_id, incarnation), changes)

    async def renew(self, worker_id: str, incarnation: str) -> bool:
        """Renews a worker; False if the index lacks blocks of it, as in `publish`."""
        key = self._key(worker_id, incarnation)
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.pexpire(key, self._ttl_ms)
                pipe.hexists(key, _COMPLETE)
                _, complete = await pipe.execute()
        return bool(complete)

    async def drop(self, worker_id: str, incarnation: str) -> None:
        """Removes a worker and its blocks."""
        key = self._key(worker_id, incarnation)
        with redis_errors():
            await self._redis.unlink(key, key + ":draft")

    async def match(self, keys: Sequence[bytes], workers: Sequence[tuple[str, str]]) -> list[Match]:
        """How much of a sequence each worker holds, in one round trip to Redis.

        Args:
            keys: block keys of the sequence, first to last.
            workers: worker id and incarnation of each.

        Returns:
            One match per worker, in the same order; (0, 0) for a worker that the index does not know.

        A block counts only if the worker has announced its ancestors too. While changes are being published a match may be too
        long or too short: it serves to choose a worker, which matches again with what it really holds.
        """
        if not keys or not workers:
            return [Match(0, 0)] * len(workers)
        _check(keys)
        with redis_errors():
            found = await self._match(keys=[self._key(*worker) for worker in workers], args=[b"".join(keys), KEY_BYTES])
        return [Match(gpu, blocks) for gpu, blocks in zip(found[::2], found[1::2], strict=True)]

    async def _write(self, key: str, changes: Mapping[bytes, Set[Tier]]) -> bool:
        complete = True
        for chunk in _chunks(changes):
            held: dict[EncodableT, EncodableT] = {
                block: letters for block, tiers in chunk.items() if (letters := encode_tiers(tiers))
            }
            gone = [block for block in chunk if block not in held]
            # One transaction: a hash whose writer died before it set the time to live would stay for ever.
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hexists(key, _COMPLETE)
                if held:
                    pipe.hset(key, mapping=held)
                if gone:
                    pipe.hdel(key, *gone)
                pipe.pexpire(key, self._ttl_ms)
                results = await pipe.execute()
            complete = complete and bool(results[0])
        return complete

    def _key(self, worker_id: str, incarnation: str) -> str:
        return f"{self._prefix}{worker_id}:{incarnation}"


def encode_tiers(tiers: Set[Tier]) -> bytes:
    """One letter per tier, fastest first; empty for a block that this worker does not hold itself."""
    return b"".join(letter for tier, letter in _LETTERS.items() if tier in tiers)


def _chunks(changes: Mapping[bytes, Set[Tier]]) -> Iterator[dict[bytes, Set[Tier]]]:
    items = iter(changes.items())
    while chunk := dict(islice(items, _CHUNK)):
        _check(chunk)
        yield chunk


def _check(keys: Sequence[bytes] | Mapping[bytes, Set[Tier]]) -> None:
    for key in keys:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a block key has {KEY_BYTES} bytes, got {len(key)}")
