"""The stream of all changes of the index, in the order in which they were made: a Redis stream, one for each cluster.

An entry has four fields: kind `k`, worker `w`, number `n` of the worker's latest change, and changes `c`, each a block key and
a packed residency. Kinds are `c` (changed; no changes: the worker was renewed), `a` (all its blocks were replaced) and `d`
(dropped). Whoever misses an entry finds out by the number of the next one, at the latest when the worker is renewed.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.locations.residency import PACKED_BYTES
from pbkv_cluster.store.block_map import WorkerKey
from pbkv_cluster.store.cluster_index.client import key_prefix, redis_errors

CHANGE_BYTES = KEY_BYTES + PACKED_BYTES
# Together they bound the stream: some 21 MB where all entries are full.
ENTRIES_MAX = 2048
ENTRY_CHANGES_MAX = 500
START = "0-0"  # before the first entry


class Change(NamedTuple):
    """One entry of the stream."""

    worker: WorkerKey
    kind: bytes
    number: int
    packed: bytes

    @property
    def dropped(self) -> bool:
        return self.kind == b"d"

    @property
    def replaced(self) -> bool:
        return self.kind == b"a"

    def blocks(self) -> Iterator[tuple[bytes, int]]:
        """Key and packed residency of each block that has changed."""
        packed = self.packed
        for at in range(0, len(packed) - CHANGE_BYTES + 1, CHANGE_BYTES):
            middle = at + KEY_BYTES
            yield packed[at:middle], int.from_bytes(packed[middle : middle + PACKED_BYTES], "little")


class ChangeStream:
    """Reads the stream from some entry on. Every method raises Unavailable when Redis does not answer."""

    def __init__(self, redis: Redis, cluster: str) -> None:
        self._redis = redis
        self._key = stream_key(cluster)
        self.position = START  # id of the entry that was read last
        self.malformed = 0  # entries that were skipped: somebody else has written to the stream

    async def skip(self) -> None:
        """Goes to the end of the stream."""
        self.position = await self._end()

    async def rewind_if_restarted(self) -> bool:
        """Goes to the start of the stream if it ends before the entry that was read last: it is not the same any more."""
        if _order(await self._end()) >= _order(self.position):
            return False
        self.position = START
        return True

    async def read(self, wait_s: float, entries_max: int = 256) -> list[Change]:
        """The next entries; waits for one for at most `wait_s` seconds, which must be less than the client's time-out."""
        with redis_errors():
            answer = await self._redis.xread({self._key: self.position}, entries_max, max(1, round(1000 * wait_s)))
        changes = []
        for entry_id, fields in _entries(answer):
            self.position = entry_id.decode()
            change = _change(fields)
            if change is None:
                self.malformed += 1
            else:
                changes.append(change)
        return changes

    async def _end(self) -> str:
        with redis_errors():
            last = cast("list[tuple[bytes, Any]]", await self._redis.xrevrange(self._key, count=1))
        return last[0][0].decode() if last else START


def _change(fields: dict[bytes, bytes]) -> Change | None:
    try:
        worker_id, _, incarnation = fields[b"w"].decode().rpartition(":")
        return Change((worker_id, incarnation), fields[b"k"], int(fields[b"n"]), fields[b"c"])
    except (KeyError, ValueError):
        return None


def stream_key(cluster: str) -> str:
    return f"{key_prefix(cluster)}changes"


def worker_name(worker_id: str, incarnation: str) -> str:
    """A worker in keys and in the stream."""
    return f"{worker_id}:{incarnation}"


def _entries(answer: Any) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """The entries in an answer to XREAD of one stream, which is a list or a mapping, as the protocol has it."""
    streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or ()]
    for entries in streams:
        for part in entries:
            # RESP3 wraps the entries of a stream in one more list.
            yield from part if isinstance(part, list) and part and isinstance(part[0], (list, tuple)) else [part]


def _order(entry_id: str) -> tuple[int, int]:
    time_ms, _, number = entry_id.partition("-")
    return int(time_ms), int(number)
