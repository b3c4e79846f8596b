"""A table of entries in Redis, each of which expires unless it is written again."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from redis.asyncio import Redis

from pbkv_cluster.store.cluster_index.client import OnceScript, lua, redis_errors, ttl_ms
from pbkv_cluster.store.cluster_index.entries import EntryCodec, MalformedEntry

log = logging.getLogger(__name__)
E = TypeVar("E")
_PAGE = 500
_MAX_TOLD = 1000  # malformed entries that are logged
_MAX_SHOWN = 256  # of an id in the log


@dataclass(frozen=True, slots=True)
class Put(Generic[E]):
    """One entry to be written; see `ExpiringTable.put`."""

    entry_id: str
    entry: E
    ttl_s: float
    over: bytes = b""


class ExpiringTable(Generic[E]):
    """Entries of one kind by id. Every method raises Unavailable when Redis does not answer.

    An entry is a key with a time to live. A sorted set of the ids by the time at which they expire lists the table without a
    scan of all keys in Redis.
    """

    def __init__(self, redis: Redis, prefix: str, name: str, kind: type[E]) -> None:
        self.malformed = 0  # entries skipped because they could not be read
        self._told: set[str] = set()  # malformed entries that have been logged
        self._redis = redis
        self._entry_prefix = f"{prefix}{name}:"
        self._table = f"{prefix}{name}s"
        self._codec = EntryCodec(kind)
        self._put = redis.register_script(lua("entry_put"))
        self._replace = OnceScript(redis, prefix, "entry_put")
        self._remove = redis.register_script(lua("entry_remove"))

    async def put(self, entry_id: str, entry: E, ttl_s: float, over: bytes = b"") -> bool:
        """Writes or renews an entry for `ttl_s` seconds; False if another is there that does not contain `over`.

        Args:
            entry_id: names the entry.
            entry: what to write.
            ttl_s: seconds that it lives.
            over: a part of the JSON of an entry that may be replaced; by default any may. What is written contains it, too, so
                that a put that is made twice is like one that is made once.
        """
        (written,) = await self.put_all([Put(entry_id, entry, ttl_s, over)])
        return written

    async def put_all(self, puts: Sequence["Put[E]"]) -> list[bool]:
        """The same for several entries, in one round trip. If it fails, some of them may have been written."""
        with redis_errors():
            if len(puts) == 1:
                keys, args = self._arguments(puts[0])
                return [bool(await self._put(keys, args))]
            async with self._redis.pipeline(transaction=False) as pipeline:
                for put in puts:
                    keys, args = self._arguments(put)
                    await self._put(keys, args, client=pipeline)
                return [bool(written) for written in await pipeline.execute()]

    async def replace(self, entry_id: str, entry: E, ttl_s: float, over: bytes) -> bool:
        """Writes an entry in place of one that contains `over`, which it need not contain itself; False if there is none."""
        keys, args = self._arguments(Put(entry_id, entry, ttl_s, over), must_be_there=True)
        with redis_errors():
            return bool(await self._replace(keys, args))

    def _arguments(self, put: "Put[E]", must_be_there: bool = False) -> tuple[list[str], list[Any]]:
        payload = self._codec.encode(put.entry)
        return [self._key(put.entry_id), self._table], [
            put.entry_id,
            payload,
            ttl_ms(put.ttl_s),
            put.over,
            int(must_be_there),
        ]

    async def get(self, entry_id: str) -> E | None:
        """The entry; None if it is absent, has expired or cannot be read."""
        payload = await self._payload(entry_id)
        return None if payload is None else self._decode(entry_id, payload)

    async def remove(self, entry_id: str, only_if: Callable[[E], bool] | None = None, containing: bytes = b"") -> None:
        """Removes an entry, if it is there, or only one that satisfies `only_if` or has `containing` in its JSON."""
        expected = b""
        if only_if is not None:
            payload = await self._payload(entry_id)
            entry = None if payload is None else self._decode(entry_id, payload)
            if payload is None or entry is None or not only_if(entry):
                return
            expected = payload
        with redis_errors():
            await self._remove(keys=[self._key(entry_id), self._table], args=[entry_id, expected, containing])

    async def entries(self) -> AsyncIterator[E]:
        """Each entry that is present throughout the iteration, once, in no order. One that comes or goes meanwhile may be
        missed.
        """
        seen: set[bytes] = set()
        cursor = 0
        while True:
            with redis_errors():
                cursor, page = await self._redis.zscan(self._table, cursor, count=_PAGE)
                new = {cast(bytes, member) for member, _ in page} - seen
                ids = [text for member in new if (text := self._text(member)) is not None]
                payloads = await self._redis.mget([self._key(entry_id) for entry_id in ids]) if ids else []
            seen |= new
            for entry_id, payload in zip(ids, payloads, strict=True):
                entry = None if payload is None else self._decode(entry_id, cast(bytes, payload))
                if entry is not None:
                    yield entry
            if cursor == 0:
                return

    async def _payload(self, entry_id: str) -> bytes | None:
        with redis_errors():
            return cast(bytes | None, await self._redis.get(self._key(entry_id)))

    def _decode(self, entry_id: str, payload: bytes) -> E | None:
        try:
            return self._codec.decode(payload)
        except MalformedEntry as error:
            self._skip(entry_id, str(error))
            return None

    def _text(self, member: bytes) -> str | None:
        """An id as text; None if it is none: somebody else has written to our table."""
        try:
            return member.decode()
        except UnicodeDecodeError:
            self._skip(repr(member[:_MAX_SHOWN]), "its id is not UTF-8")
            return None

    def _skip(self, entry_id: str, problem: str) -> None:
        """Counts an entry that cannot be read. Tables are read every second, so each entry is logged once."""
        self.malformed += 1
        if entry_id not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(entry_id)
            log.warning("skipped the malformed entry %s%s: %s", self._entry_prefix, entry_id[:_MAX_SHOWN], problem)

    def _key(self, entry_id: str) -> str:
        return self._entry_prefix + entry_id
