"""The chunks that vLLM's tier holds, in the order in which they are to leave it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Generic, TypeVar

ChunkT = TypeVar("ChunkT")

_GROUP_BYTES = 4  # at the end of a key: index of the KV cache group


def hash_of(key: bytes) -> bytes:
    """The block hash in an offload key."""
    return key[:-_GROUP_BYTES]


def group_of(key: bytes) -> bytes:
    """The group index in an offload key, as it stands there."""
    return key[-_GROUP_BYTES:]


class ChunkOrder(Generic[ChunkT]):
    """Chunks by their keys. First leaves what was given up, in that order, then what was used least recently.

    A hybrid model has chunks of several groups under one hash; they are given up together.
    """

    def __init__(self, is_idle: Callable[[ChunkT], bool]) -> None:
        """Args:
        is_idle: whether no transfer reads or writes a chunk, so that it may leave.
        """
        self._is_idle = is_idle
        self._kept: OrderedDict[bytes, ChunkT] = OrderedDict()  # by the last use, oldest first
        self._given_up: OrderedDict[bytes, ChunkT] = OrderedDict()  # oldest first
        self._groups: dict[bytes, None] = {}  # that any key has had

    def __len__(self) -> int:
        return len(self._kept) + len(self._given_up)

    def get(self, key: bytes) -> ChunkT | None:
        """The chunk under a key; None: the tier has none."""
        chunk = self._kept.get(key)
        return self._given_up.get(key) if chunk is None else chunk

    def add(self, key: bytes, chunk: ChunkT) -> None:
        """A chunk enters the tier."""
        self._groups[group_of(key)] = None
        self._kept[key] = chunk

    def remove(self, key: bytes) -> None:
        """A chunk leaves the tier without having been evicted.

        Raises:
            KeyError: the tier does not hold it.
        """
        if self._kept.pop(key, None) is None:
            del self._given_up[key]

    def use(self, keys: Iterable[bytes]) -> None:
        """A request uses chunks, in the order of its prompt: of two of its chunks, the later one leaves first."""
        for key in reversed(list(keys)):
            order = self._given_up if key in self._given_up else self._kept
            if key in order:
                order.move_to_end(key)

    def give_up(self, block_hash: bytes) -> None:
        """Chunks with this hash are to leave before all that was not given up."""
        self._move(block_hash, self._kept, self._given_up)

    def keep(self, block_hash: bytes) -> None:
        """Chunks with this hash are not given up after all."""
        self._move(block_hash, self._given_up, self._kept)

    def evict(self, count: int, protected: Collection[bytes]) -> list[tuple[bytes, ChunkT]] | None:
        """Takes out exactly so many idle chunks that are not protected, or none at all and returns None.

        It looks at no more chunks than it takes out, are protected, or are in transfer.
        """
        victims = list[tuple[bytes, ChunkT]]()
        if count:
            for key, chunk in self._in_order():
                if self._is_idle(chunk) and key not in protected:
                    victims.append((key, chunk))
                    if len(victims) == count:
                        break
            else:
                return None
        for key, _ in victims:
            self.remove(key)
        return victims

    def clear(self) -> None:
        """Takes out everything."""
        self._kept.clear()
        self._given_up.clear()

    def _in_order(self) -> Iterator[tuple[bytes, ChunkT]]:
        yield from self._given_up.items()
        yield from self._kept.items()

    def _move(self, block_hash: bytes, source: OrderedDict[bytes, ChunkT], target: OrderedDict[bytes, ChunkT]) -> None:
        for group in self._groups:
            chunk = source.pop(block_hash + group, None)
            if chunk is not None:
                target[block_hash + group] = chunk
