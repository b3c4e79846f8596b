"""The blocks of other workers, as this worker's cache and its copy threads see them.

Nodes are not equally fast. A block that several have is read from the fastest. One from which a block takes longer than to
compute it, and much longer than from another node, is left alone, so that it does not make all of them look slow; after a while
it is tried again with a few blocks.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.lanes.lane_speed import TRIAL_BLOCKS, LaneSpeed
from pbkv_cluster.store.arena.slots import Bytes, ReadResult
from pbkv_cluster.store.block_map import BlockMap
from pbkv_cluster.store.block_source import BlockPlace, BlockSource

_REST_S = 5.0  # for which a node that did not answer is left alone
_MUCH_SLOWER = 2.0  # times as slow as the fastest node


class OtherWorkers:
    """Knows from the map of blocks who has what, and reads it from the source for its kind of memory.

    A block that is not where the map says is forgotten there until its worker tells of it again. Every thread may call this.
    """

    def __init__(
        self,
        blocks: BlockMap,
        node: str,
        worker_id: str,
        sources: Mapping[Tier, BlockSource],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        blocks: kept up to date by somebody else.
        node: id of this worker's node.
        worker_id: this worker's.
        sources: for each kind of memory that can be read, the fastest first.
        now: seconds.
        """
        self.tiers_read = tuple(sources)
        self.decisions: Counter[str] = Counter()  # see `Elsewhere`
        # Seconds of connecting, and of waiting for nodes that did not answer. Each kind of memory is read by one thread.
        self.lost_s = dict.fromkeys(Tier, 0.0)
        self.compute_block_s: Callable[[], float] = lambda: inf  # seconds that a block takes to compute, as measured
        self._speeds: dict[tuple[Tier, str], LaneSpeed] = {}  # by kind of memory and node
        self._blocks = blocks
        self._node = node
        self._worker_id = worker_id
        self._sources = sources
        self._now = now
        self._rests_until: dict[tuple[Tier, str], float] = {}  # by kind of memory and node

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        """See `Elsewhere.tiers`."""
        found = list[Tier]()
        if self.tiers_read and self._blocks:
            slow = self._slow()
            for key in keys:
                places = list(self._places(key))
                kinds = {tier for tier, place in places if place.node not in slow or slow[place.node] > 0}
                tier = next((tier for tier in self.tiers_read if tier in kinds), None)
                if tier is None:
                    if any(place.node in slow for _, place in places):
                        self.decisions["remote_slow"] += 1
                    break
                if slow:
                    slow = {node: left - any(place.node == node for _, place in places) for node, left in slow.items()}
                found.append(tier)
        return found

    def is_near(self, key: bytes) -> bool:
        """See `Elsewhere.is_near`. What a sibling shelters it does not keep for long."""
        places = self._blocks.places(key, self._worker_id)
        kept = (place for place in places if not place.sheltered)
        return Tier.SIBLING in self.tiers_read and any(self._kind(place) is Tier.SIBLING for place in kept)

    def read(self, tier: Tier, keys: Sequence[bytes], targets: Sequence[Bytes]) -> list[bool]:
        """Reads blocks from one kind of memory. Returns whether each was read; blocks until then."""
        is_read = [False] * len(keys)
        by_node: dict[str, list[tuple[int, BlockPlace]]] = {}
        for number, key in enumerate(keys):
            places = (place for kind, place in self._places(key) if kind is tier)
            place = min(places, key=lambda place: self._block_s(tier, place.node), default=None)
            if place is None:
                self.decisions[f"{tier.value}_absent"] += 1
            else:
                by_node.setdefault(place.node, []).append((number, place))
        for node, wanted in by_node.items():
            begun = self._now()
            try:
                self._sources[tier].connect(node)
                self.lost_s[tier] += self._now() - begun
                begun = self._now()
                results = self._sources[tier].read(
                    [(keys[number], place) for number, place in wanted], [targets[number] for number, _ in wanted]
                )
            except Unavailable:
                self.lost_s[tier] += self._now() - begun
                self._rests_until[tier, node] = self._now() + _REST_S
                self.decisions[f"{tier.value}_unavailable"] += len(wanted)
                continue
            if arrived := results.count(ReadResult.READ):
                self._speeds.setdefault((tier, node), LaneSpeed(self._now)).add(arrived, self._now() - begun)
            for (number, place), result in zip(wanted, results, strict=True):
                if result is ReadResult.READ:
                    is_read[number] = True
                else:
                    self.decisions[f"{tier.value}_{result.value}"] += 1
                    self._blocks.forget(keys[number], place)
        return is_read

    def _slow(self) -> dict[str, int]:
        """The nodes that are left alone, and how many blocks each may be tried with."""
        speeds = {node: speed for (tier, node), speed in self._speeds.items() if tier is Tier.REMOTE}
        if len(speeds) < 2:
            return {}
        most_s = max(self.compute_block_s(), _MUCH_SLOWER * min(speed.block_s for speed in speeds.values()))
        return {node: TRIAL_BLOCKS * speed.needs_trial for node, speed in speeds.items() if speed.block_s > most_s}

    def _block_s(self, tier: Tier, node: str) -> float:
        """Seconds that a block took lately from a kind of memory of a node; 0: that has not been measured."""
        speed = self._speeds.get((tier, node))
        return 0.0 if speed is None else speed.block_s

    def _places(self, key: bytes) -> Iterator[tuple[Tier, BlockPlace]]:
        """Where a block can be read now, and from which kind of memory."""
        now = self._now()
        for place in self._blocks.places(key, self._worker_id):
            tier = self._kind(place)
            if tier is not None and self._rests_until.get((tier, place.node), now) <= now:
                yield tier, place

    def _kind(self, place: BlockPlace) -> Tier | None:
        """The kind of memory that a block would be read from; None: nobody reads what lies only on the disk of another."""
        if place.tier is not Tier.HOST:
            return None
        return Tier.SIBLING if place.node == self._node else Tier.REMOTE
