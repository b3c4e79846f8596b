"""A table of records in Redis, each of which is gone when its lease runs out."""

import logging
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar, cast

from redis.asyncio import Redis

from pbkv_cluster.store.cluster_index.client import lua, redis_errors
from pbkv_cluster.store.cluster_index.entries import EntryCodec, Malformed

log = logging.getLogger(__name__)
R = TypeVar("R")
_PAGE = 500


class ExpiringTable(Generic[R]):
    """Records of one kind by id. Every method raises Unavailable when Redis does not answer.

    A record is a key with a time to live; a sorted set of the ids by the end of their lease makes the table countable and
    listable without a walk over the whole of Redis.
    """

    def __init__(self, redis: Redis, prefix: str, name: str, kind: type[R]) -> None:
        self.malformed = 0  # records skipped because they could not be read
        self._redis = redis
        self._record_prefix = f"{prefix}{name}:"
        self._table = f"{prefix}{name}s"
        self._codec = EntryCodec(kind)
        self._put = redis.register_script(lua("lease_put"))
        self._remove = redis.register_script(lua("lease_remove"))
        self._count = redis.register_script(lua("lease_count"))

    async def put(self, record_id: str, record: R, lease_s: float) -> None:
        """Writes or renews a record for `lease_s` seconds."""
        await self._write(record_id, record, lease_s, expected=b"")

    async def get(self, record_id: str) -> R | None:
        """None if there is no such record, no longer, or none that can be read."""
        payload = await self._payload(record_id)
        return None if payload is None else self._decode(record_id, payload)

    async def update(self, record_id: str, change: Callable[[R], R], lease_s: Callable[[R], float]) -> bool:
        """Replaces a record by `change` of it and renews its lease; False if there is none. Concurrent updates all count."""
        while (payload := await self._payload(record_id)) is not None:
            record = self._decode(record_id, payload)
            if record is None:
                return False
            changed = change(record)
            if await self._write(record_id, changed, lease_s(changed), expected=payload):
                return True
        return False

    async def remove(self, record_id: str, only_if: Callable[[R], bool] | None = None) -> bool:
        """Removes a record, or only one that satisfies `only_if`; False if there was none."""
        expected = b""
        if only_if is not None:
            payload = await self._payload(record_id)
            record = None if payload is None else self._decode(record_id, payload)
            if payload is None or record is None or not only_if(record):
                return False
            expected = payload
        with redis_errors():
            return bool(await self._remove(keys=[self._key(record_id), self._table], args=[record_id, expected]))

    async def count(self) -> int:
        with redis_errors():
            return int(await self._count(keys=[self._table]))

    async def records(self) -> AsyncIterator[R]:
        """Every record that is there from the first to the last step of the iteration, once; in no order."""
        seen: set[str] = set()
        cursor = 0
        while True:
            with redis_errors():
                cursor, page = await self._redis.zscan(self._table, cursor, count=_PAGE)
                ids = {cast(bytes, each).decode() for each, _ in page} - seen
                payloads = await self._redis.mget([self._key(each) for each in ids]) if ids else []
            seen |= ids
            for record_id, payload in zip(ids, payloads, strict=True):
                record = None if payload is None else self._decode(record_id, cast(bytes, payload))
                if record is not None:
                    yield record
            if cursor == 0:
                return

    async def _write(self, record_id: str, record: R, lease_s: float, *, expected: bytes) -> bool:
        keys = [self._key(record_id), self._table]
        args: list[str | bytes | int] = [record_id, self._codec.encode(record), lease_ms(lease_s), expected]
        with redis_errors():
            return bool(await self._put(keys=keys, args=args))

    async def _payload(self, record_id: str) -> bytes | None:
        with redis_errors():
            return cast(bytes | None, await self._redis.get(self._key(record_id)))

    def _decode(self, record_id: str, payload: bytes) -> R | None:
        try:
            return self._codec.decode(payload)
        except Malformed as error:
            self.malformed += 1
            log.warning("skipped the malformed record %s%s: %s", self._record_prefix, record_id, error)
            return None

    def _key(self, record_id: str) -> str:
        return self._record_prefix + record_id


def lease_ms(lease_s: float) -> int:
    """A lease in whole milliseconds, at least one."""
    return max(1, round(lease_s * 1000))
