"""Which worker holds which block, in this process's memory: asked at every placement and admission.

Whoever knows of changes writes it (`cluster_index/mirror.py`, on an event loop); any thread may ask.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pbkv_cluster.core.locations.residency import IN_HOST, IN_MEMORY, ON_GPU, SHARED, is_readable, unpack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.block_source import BlockPlace

WorkerKey = tuple[str, str]
"""Worker id and incarnation. One that has restarted has another key: its GPU holds nothing of what it held before."""

MAX_BYTES = 1 << 30
BYTES_A_BLOCK = 120  # of a block on one worker: key, number and entry of the dictionary; measured by `benchmarks index`


class Match(NamedTuple):
    """How much of a sequence of blocks a worker holds: lengths of the leading runs, in blocks."""

    gpu_blocks: int  # on the GPU; at most `blocks`
    blocks: int  # in any tier
    disk_blocks: int = 0  # of these, the last, which only its disk holds; 0 where that is not known
    sibling_blocks: int = 0  # after these, that other workers of its node hold where it could read them
    remote_blocks: int = 0  # after `blocks`, too, that workers of another node hold where it could read them


class _Held:
    """What one worker holds."""

    __slots__ = ("blocks", "has_lent", "node", "worker")

    def __init__(self, worker: WorkerKey, node: str, blocks: dict[bytes, int]) -> None:
        self.worker = worker
        self.node = node
        self.blocks = blocks  # packed residencies
        self.has_lent = False  # whether there has been a block that other workers could read

    def run(self, keys: Sequence[bytes], most: int, bits: int) -> int:
        """Length of the leading run in some tiers, at most `most`, by bisection: what holds a block holds its ancestors."""
        get = self.blocks.get
        if not most or not (get(keys[0], 0) & bits):
            return 0
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            if get(keys[middle - 1], 0) & bits:
                low = middle
            else:
                high = middle - 1
        return low


def _lends(packed: int) -> bool:
    """Whether other workers can read a block, of a packed residency: they do not read what lies only on the disk of another."""
    return bool(packed & IN_HOST) and is_readable(packed)


class _Run(NamedTuple):
    """Leading blocks of a sequence that one worker has in memory."""

    length: int
    node: str
    blocks: Mapping[bytes, int]  # all that it holds


class _OtherRuns:
    """How much of a sequence could be read from workers after what one has itself: blocks after a `start`, 0 if there are none.

    Each answer is found once: mostly, many workers have the same start, such as the end of a system prompt.
    """

    def __init__(self, keys: Sequence[bytes], runs: Iterable[_Run]) -> None:
        self._keys = keys
        self._longest_first = sorted(runs, key=lambda run: -run.length)
        self._by_node: dict[str, list[_Run]] = {}
        for run in self._longest_first:
            self._by_node.setdefault(run.node, []).append(run)
        self._on: dict[tuple[str, int], int] = {}
        self._on_two: dict[int, dict[str, int]] = {}  # by start: from the two nodes that have most

    def on(self, node: str, start: int) -> int:
        """From a worker of a node."""
        if (node, start) not in self._on:
            self._on[node, start] = next((blocks for blocks, _ in self._readable(self._by_node.get(node, ()), start)), 0)
        return self._on[node, start]

    def besides(self, node: str, start: int) -> int:
        """From a worker of another node."""
        if start not in self._on_two:
            found = self._on_two[start] = {}
            for blocks, other in self._readable(self._longest_first, start):
                found.setdefault(other, blocks)
                if len(found) == 2:
                    break
        return next((blocks for other, blocks in self._on_two[start].items() if other != node), 0)

    def _readable(self, runs: Sequence[_Run], start: int) -> Iterator[tuple[int, str]]:
        """Blocks after the start, and the node, of each run that goes on there and can be read; most blocks first."""
        for length, node, blocks in runs:
            if length <= start:
                return
            if _lends(blocks.get(self._keys[start], 0)):
                yield length - start, node


class BlockMap:
    """Packed residencies by block key, for each worker; bounded in bytes. What does not fit is left out, and counted."""

    def __init__(self, bits: int = ON_GPU | SHARED, max_bytes: int = MAX_BYTES) -> None:
        """Args:
        bits: tiers that matter here, as in packed residencies; blocks in no such tier are left out.
        max_bytes: of memory.
        """
        self.left_out = 0  # blocks
        self._bits = bits
        self._blocks_max = max_bytes // BYTES_A_BLOCK
        self._held: dict[WorkerKey, _Held] = {}
        # Both are replaced as a whole, as other threads may be reading them.
        self._all: tuple[_Held, ...] = ()
        self._by_node: dict[str, tuple[_Held, ...]] = {}

    def __len__(self) -> int:
        """Blocks, one that several workers hold counted for each."""
        return sum(len(held.blocks) for held in self._all)

    @property
    def workers(self) -> Collection[WorkerKey]:
        return self._held.keys()

    def blocks(self, worker: WorkerKey) -> Mapping[bytes, int]:
        """The packed residencies of a worker's blocks."""
        held = self._held.get(worker)
        return {} if held is None else held.blocks

    # --- changes ---

    def replace(self, worker: WorkerKey, node: str, blocks: Iterable[tuple[bytes, int]]) -> None:
        """All that a worker holds, instead of what it or an earlier process of it was known to hold.

        Args:
            worker: id and incarnation.
            node: id of its node.
            blocks: key and packed residency of each.
        """
        for other in [each for each in self._held if each[0] == worker[0]]:
            self.remove(other)
        self._held[worker] = _Held(worker, node, {})
        self.change(worker, blocks)
        self._sort()

    def change(self, worker: WorkerKey, blocks: Iterable[tuple[bytes, int]]) -> None:
        """Changed blocks of a known worker; 0 for one that is gone."""
        known, bits = self._held[worker], self._bits
        held = known.blocks
        room = self._blocks_max - len(self)
        for key, packed in blocks:
            if not packed & bits:
                room += held.pop(key, None) is not None
            elif key in held or room > 0:
                room -= key not in held
                held[key] = packed
                known.has_lent = known.has_lent or _lends(packed)
            else:
                self.left_out += 1

    def remove(self, worker: WorkerKey) -> None:
        """Forgets a worker, if it is known."""
        if self._held.pop(worker, None) is not None:
            self._sort()

    def forget(self, key: bytes, place: BlockPlace) -> None:
        """A block turned out not to be where it was said to be."""
        for held in self._by_node.get(place.node, ()):
            if held.worker[0] == place.region and unpack(held.blocks.get(key, 0)).slot == place.slot:
                held.blocks.pop(key, None)

    def _sort(self) -> None:
        by_node: dict[str, list[_Held]] = {}
        for held in self._held.values():
            by_node.setdefault(held.node, []).append(held)
        self._all = tuple(self._held.values())
        self._by_node = {node: tuple(each) for node, each in by_node.items()}

    # --- questions ---

    def match(self, keys: Sequence[bytes], workers: Sequence[WorkerKey]) -> list[Match]:
        """How much of a sequence each worker holds, and how much more it could read from other workers.

        What others hold is an estimate: the longest run of one of them, taken to be readable as a whole if its first block is.

        Args:
            keys: block keys of the sequence, first to last.
            workers: worker id and incarnation of each.
        """
        runs: dict[WorkerKey, tuple[int, int]] = {}  # in memory, and in any tier
        for held in self._all:
            blocks = held.run(keys, len(keys), -1)
            runs[held.worker] = held.run(keys, blocks, IN_MEMORY), blocks
        others = _OtherRuns(keys, [_Run(runs[held.worker][0], held.node, held.blocks) for held in self._all if held.has_lent])
        matches = []
        for worker in workers:
            known = self._held.get(worker)
            if known is None:
                matches.append(Match(0, 0))
                continue
            in_memory, blocks = runs[worker]
            gpu = known.run(keys, in_memory, ON_GPU)
            sibling, remote = others.on(known.node, blocks), others.besides(known.node, blocks)
            matches.append(Match(gpu, blocks, blocks - in_memory, sibling, remote))
        return matches

    def places(self, key: bytes, besides: str = "") -> Iterator[BlockPlace]:
        """Where other processes can read a block.

        Args:
            key: of the block.
            besides: id of a worker that is left out.
        """
        for held in self._all:
            if is_readable(packed := held.blocks.get(key, 0)) and held.worker[0] != besides:
                tiers, slot, sheltered = unpack(packed)
                tier = Tier.HOST if Tier.HOST in tiers else Tier.DISK
                yield BlockPlace(held.node, held.worker[0], slot, tier, sheltered)
