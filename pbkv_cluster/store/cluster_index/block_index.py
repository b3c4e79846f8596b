"""Which worker holds which block, in which of its tiers and in which slot."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import islice
from secrets import token_bytes
from typing import cast

from redis.asyncio import Redis
from redis.typing import EncodableT

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.residency import PACKED_BYTES
from pbkv_cluster.store.block_map import Match, WorkerKey
from pbkv_cluster.store.cluster_index.change_stream import CHANGE_BYTES, ENTRIES_MAX, ENTRY_CHANGES_MAX, stream_key, worker_name
from pbkv_cluster.store.cluster_index.client import key_prefix, lua, redis_errors, ttl_ms

# A field that cannot be a block key. It marks a hash that has all blocks of its worker, not only those that the worker has
# published since Redis came back empty; its value is the number of the worker's latest change. Beside it, `id`,
# which cannot be a block key either, has the id of that change, unless it is an announcement.
_NUMBER = ""
_ID_BYTES = 8
# Changes that may have arrived without a confirmation: a few. An announcement skips their numbers.
_UNCONFIRMED_MAX = 1_000_000
_PAGE = 1000  # fields that one command writes or reads, which bounds the time for which it occupies the server


class BlockIndex:
    """The index of a cluster: one hash per incarnation of a worker, gone `ttl_s` seconds after the worker last wrote to it.

    Residencies are packed (`Residency.pack`); 0 stands for a block that is gone. Whatever is written is told to the change
    stream, too. Every method raises Unavailable when Redis does not answer.

    The changes of an incarnation are numbered by the one object of this class that makes them. Its numbers never go back, also
    where another server takes over that lacks the last changes or has a clock that is late: that is how a loss shows.
    """

    def __init__(self, redis: Redis, cluster: str, ttl_s: float) -> None:
        self.redis = redis
        self.cluster = cluster
        self.ttl_s = ttl_s
        self._numbers: dict[WorkerKey, int] = {}  # of the latest change that we have made
        self._prefix = f"{key_prefix(cluster)}blocks:"
        self._stream = stream_key(cluster)
        self._ttl_ms = ttl_ms(ttl_s)
        self._match = redis.register_script(lua("match"))
        self._publish = redis.register_script(lua("publish"))
        self._announce = redis.register_script(lua("announce"))
        self._drop = redis.register_script(lua("drop"))

    async def announce(self, worker_id: str, incarnation: str, blocks: Mapping[bytes, int]) -> None:
        """Replaces all blocks of a worker at once: readers see either the old ones or the new ones."""
        key = self._key(worker_id, incarnation)
        draft = key + ":draft"
        number = self._numbers.get((worker_id, incarnation), 0) + _UNCONFIRMED_MAX
        self._numbers[worker_id, incarnation] = number  # at once: it may arrive without a confirmation
        drafted = 0
        with redis_errors():
            await self.redis.unlink(draft)
            for page in _pages(blocks, _PAGE):
                fields: dict[EncodableT, EncodableT] = {
                    block: packed.to_bytes(PACKED_BYTES, "little") for block, packed in page.items() if packed
                }
                drafted += len(fields)
                # One transaction: a hash whose writer died before it set the time to live would stay for ever.
                async with self.redis.pipeline(transaction=True) as pipe:
                    if fields:
                        pipe.hset(draft, mapping=fields)
                    pipe.pexpire(draft, self._ttl_ms)
                    await pipe.execute()
            name = worker_name(worker_id, incarnation)
            args: list[str | int] = [name, self._ttl_ms, ENTRIES_MAX, number, drafted]
            is_announced = bool(await self._announce(keys=[key, draft, self._stream], args=args))
        if not is_announced:
            raise Unavailable("Redis: another server has taken over while blocks were announced")

    async def publish(self, worker_id: str, incarnation: str, changes: Mapping[bytes, int]) -> bool:
        """Enters changed blocks, and renews the worker.

        Returns:
            False if the index is not as our latest change of the worker has left it: other blocks are not there, or a server
            without that change has taken over, or we have taken it to be lost and it was not. Then these changes have not
            been entered either, or not all of them, and the worker is to be announced again.
        """
        pages = [b"".join(_encode(page)) for page in _pages(changes, ENTRY_CHANGES_MAX)]
        return all([await self._write((worker_id, incarnation), page) for page in pages])

    async def renew(self, worker_id: str, incarnation: str) -> bool:
        """Renews a worker; False as in `publish`."""
        return await self._write((worker_id, incarnation), b"")

    async def drop(self, worker_id: str, incarnation: str) -> None:
        """Removes a worker and its blocks."""
        key = self._key(worker_id, incarnation)
        with redis_errors():
            await self._drop(
                keys=[key, key + ":draft", self._stream],
                args=[worker_name(worker_id, incarnation), self._ttl_ms, ENTRIES_MAX],
            )

    async def match(self, keys: Sequence[bytes], workers: Sequence[WorkerKey]) -> list[Match]:
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

    async def number(self, worker: WorkerKey) -> int | None:
        """The number of a worker's latest change; None if not all of its blocks are here."""
        with redis_errors():
            number = await self.redis.hget(self._key(*worker), _NUMBER)
        return None if number is None else int(cast(bytes, number))

    async def residencies(self, worker: WorkerKey, keys: Sequence[bytes]) -> list[int]:
        """Where some blocks of a worker lie, packed; 0: the index does not have the block."""
        found: list[int] = []
        for start in range(0, len(keys), _PAGE):
            with redis_errors():
                page = await self.redis.hmget(self._key(*worker), list(keys[start : start + _PAGE]))
            found += [0 if packed is None else int.from_bytes(cast(bytes, packed), "little") for packed in page]
        return found

    async def pages(self, worker: WorkerKey) -> AsyncIterator[dict[bytes, int]]:
        """A worker's blocks, a part at a time: all that are here throughout. What changes meanwhile may be missed.

        Raises Unavailable, too, when another server takes over meanwhile.
        """
        key, cursor = self._key(*worker), 0
        with redis_errors():
            async with self.redis.pipeline() as one_connection:
                # A watched key ties the commands to this connection. Over another one, a retried scan could come to a server
                # on which its cursor means other blocks.
                await one_connection.watch(key)
                while True:
                    cursor, found = await one_connection.hscan(key, cursor, count=_PAGE)
                    page = cast(dict[bytes, bytes], found)
                    yield {block: int.from_bytes(packed, "little") for block, packed in page.items() if len(block) == KEY_BYTES}
                    if cursor == 0:
                        return

    async def _write(self, worker: WorkerKey, changes: bytes) -> bool:
        number = self._numbers.get(worker, 0)
        name = worker_name(*worker)
        args: list[str | bytes | int] = [name, changes, KEY_BYTES, CHANGE_BYTES, self._ttl_ms, ENTRIES_MAX, number]
        args.append(token_bytes(_ID_BYTES))  # the same when the client sends it again, after its time-out
        with redis_errors():
            latest = int(await self._publish(keys=[self._key(*worker), self._stream], args=args))
        if latest:
            self._numbers[worker] = latest
        return bool(latest)

    def _key(self, worker_id: str, incarnation: str) -> str:
        return self._prefix + worker_name(worker_id, incarnation)


def _pages(blocks: Mapping[bytes, int], size: int) -> Iterator[dict[bytes, int]]:
    items = iter(blocks.items())
    while page := dict(islice(items, size)):
        _check(page)
        yield page


def _encode(changes: Mapping[bytes, int]) -> Iterator[bytes]:
    for key, packed in changes.items():
        yield key
        yield packed.to_bytes(PACKED_BYTES, "little")


def _check(keys: Sequence[bytes] | Mapping[bytes, int]) -> None:
    for key in keys:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a block key has {KEY_BYTES} bytes, got {len(key)}")
