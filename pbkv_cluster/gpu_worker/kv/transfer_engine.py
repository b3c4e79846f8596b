"""Carries transfers out on threads of its own, while the engine computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from functools import partial
from itertools import islice
from math import inf
from time import monotonic, perf_counter
from typing import Any

from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import Slots, new_slots
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv.block_copies import BlockCopies
from pbkv_cluster.gpu_worker.kv.disk_copies import DiskCopies
from pbkv_cluster.gpu_worker.kv.erasures import Erasures, used
from pbkv_cluster.gpu_worker.kv.host_arrivals import HostArrivals
from pbkv_cluster.gpu_worker.kv.host_region import HostRegion
from pbkv_cluster.gpu_worker.kv.lanes.copy_lane import CopyLane
from pbkv_cluster.gpu_worker.kv.lanes.copy_meter import CopyMeter, Lane
from pbkv_cluster.gpu_worker.kv.lanes.lane_speed import TRIAL_BLOCKS, LaneSpeed
from pbkv_cluster.gpu_worker.kv.layer_events import LayerEvent, LayerEvents
from pbkv_cluster.gpu_worker.kv.other_workers import OtherWorkers

_LOADS: Lane = (Tier.HOST, Tier.GPU)
_LANES: Sequence[Lane] = ((Tier.GPU, Tier.HOST), _LOADS)
_DISK_LANES: Sequence[Lane] = ((Tier.HOST, Tier.DISK), (Tier.DISK, Tier.GPU))


class ThreadedTransferEngine:
    """A lane for each pair of tiers, with a thread that takes its urgent transfers first; others' memory counts as a tier.

    A block gets its header and checksum when it is stored. When it is loaded, the header is checked always and the checksum of
    the bytes as often as configured; a block that does not pass is emptied from its slot and reported as failed.

    Loads from the host that a step waits for can arrive layer by layer. Checksums are compared last, while the step computes.
    """

    labelled = True

    def __init__(
        self,
        copies: BlockCopies,
        region: HostRegion,
        verify_share: float = 1.0,
        disk: DiskCopies | None = None,
        others: OtherWorkers | None = None,
        by_layer: bool = True,
        now: Callable[[], float] = monotonic,
    ) -> None:
        """Args:
        copies: between the pools of the device.
        region: the host tier.
        verify_share: share of the loads from the host whose bytes are compared with their checksum.
        disk: the disk tier; None: there is none.
        others: what is fetched comes from them; None: nothing is fetched.
        by_layer: whether loads from the host arrive layer by layer.
        now: seconds that never go back, by which measurements get old.
        """
        self._disk = disk
        self._copies = copies
        self._region = region
        self._verify_share = verify_share
        self._verify_due = 0.0
        self._others = others
        self._by_layer = by_layer
        self._landings = {tier: copies.landing() for tier in (others.tiers_read if others is not None else ())}
        lanes = [*_LANES, *(_DISK_LANES if disk is not None else ()), *((tier, Tier.GPU) for tier in self._landings)]
        self._lanes = {(source, target): CopyLane(f"copies-{source.value}-to-{target.value}") for source, target in lanes}
        staging = [(source, Tier.HOST) for source, target in lanes if target is Tier.GPU and source is not Tier.HOST]
        self._lanes |= {lane: self._lanes[lane[0], Tier.GPU] for lane in staging}  # so that each place has one reader
        self._open: dict[Transfer, Future[None]] = {}
        self._done: deque[Transfer] = deque()  # by the lanes' threads, in the order of completion
        self._error: BaseException | None = None
        self.meter, self._speeds = CopyMeter([*lanes, *staging]), {lane: LaneSpeed(now) for lane in self._lanes}
        self._erasures, self._arrivals = Erasures(region, disk), HostArrivals(region, disk, others, self.meter.add_damaged)

    def submit(self, transfer: Transfer) -> bool:
        """See `TransferEngine.submit`."""
        earlier = {each: self._open[each] for each in transfer.after if each in self._open}
        lane = self._lanes[transfer.source, transfer.target]
        layers = None
        is_near = all(each.source is Tier.GPU for each in earlier)  # else it may be long before it begins
        if self._by_layer and is_near and transfer.urgent and (transfer.source, transfer.target) == _LOADS:
            transfer.layers = layers = LayerEvents(self._copies.layers, partial(self._seconds_left, transfer))
        copy = partial(self._carry_out, transfer, earlier, self._copies.fence(), layers)
        self._open[transfer] = lane.submit(transfer, copy, earlier.values())
        return False

    def completed(self) -> Sequence[Transfer]:
        """See `TransferEngine.completed`."""
        if self._error is not None:
            raise RuntimeError("a copy between tiers has failed") from self._error
        completed = [self._done.popleft() for _ in range(len(self._done))]
        for transfer in completed:
            del self._open[transfer]
            self._erasures.ended(transfer)
        return completed

    def wait(self, transfers: Iterable[Transfer], timeout_s: float | None = None) -> None:
        """See `TransferEngine.wait`."""
        late = [each for each in transfers if each in self._open]
        for transfer in late:
            transfer.expedite()
        for ended in futures.wait([self._open[each] for each in late], timeout_s).done:
            ended.result()

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        """See `TransferEngine.seconds`: with all that its thread has to carry out. 0 before the first transfer that way."""
        block_s = self._block_seconds((source, target))
        if not block_s:
            return 0.0
        queued = self._queued((source, target))
        if target is Tier.DISK and self._disk is not None:
            return self._disk.disk.seconds(blocks + sum(len(each) for each in queued))
        rates = (self._block_seconds((each.source, each.target)) or block_s for each in queued)
        return block_s * blocks + sum(rate * len(each) for rate, each in zip(rates, queued, strict=True))

    def trial_blocks(self, source: Tier, target: Tier) -> int:
        """See `TransferEngine.trial_blocks`."""
        lane = (source, target)
        is_due = lane in self._speeds and self._speeds[lane].needs_trial and not self._queued(lane)
        return TRIAL_BLOCKS if is_due else 0

    def _block_seconds(self, lane: Lane) -> float:
        """That a block takes; 0: that has not been measured."""
        speed = self._speeds.get(lane)
        return 0.0 if speed is None else speed.block_s

    def _queued(self, lane: Lane) -> list[Transfer]:
        """All that the thread of a lane has to carry out."""
        thread = self._lanes[lane]
        return [each for each in self._open if self._lanes[each.source, each.target] is thread]

    def _seconds_left(self, transfer: Transfer, arrived: float) -> float:
        lane = (transfer.source, transfer.target)
        block_s = self._block_seconds(lane)
        queued = sum(len(each) for each in self._open if (each.source, each.target) == lane)
        return block_s * (queued - arrived * len(transfer)) if block_s else inf

    def erase(self, tier: Tier, slots: Slots) -> None:
        """See `TransferEngine.erase`. No transfer uses a slot while it is emptied, so that no header has two writers."""
        erased, late_lanes = set(slots), {self._lanes[each.source, each.target] for each in self._open if each.given_up}
        using = [each for each in self._open if not erased.isdisjoint(used(each, tier))]
        late = [each for each in using if self._lanes[each.source, each.target] in late_lanes]
        self.wait(set(using).difference(late))
        self._erasures.erase(tier, slots, late)

    def close(self) -> None:
        """Ends the threads, after the copies that have begun."""
        for lane in self._lanes.values():
            lane.close()
        if self._disk is not None:
            self._disk.disk.close()

    def _carry_out(
        self, transfer: Transfer, earlier: Mapping[Transfer, Future[None]], fence: Any, layers: LayerEvents | None
    ) -> None:
        try:
            for future in earlier.values():
                future.result()
            lane = (transfer.source, transfer.target)
            start, lost_s = perf_counter(), self._lost_s(transfer)
            lost = {slot for each in earlier for slot in each.failed}
            transfer.failed = new_slots(self._carry(transfer, lost, fence, layers))
            seconds, arrived = perf_counter() - start, len(transfer) - len(transfer.failed)
            self.meter.add(lane, arrived, seconds)
            if arrived:
                self._speeds[lane].add(arrived, seconds - (self._lost_s(transfer) - lost_s))
        except BaseException as error:
            self._error = error
            raise
        finally:
            if layers is not None:
                layers.end()
        self._done.append(transfer)

    def _lost_s(self, transfer: Transfer) -> float:
        """Seconds so far in which nothing came from where a transfer's blocks lie, though they were asked for."""
        return 0.0 if self._others is None else self._others.lost_s[transfer.source]

    def _carry(self, transfer: Transfer, lost: set[int], fence: Any, layers: LayerEvents | None) -> Iterator[int]:
        """Copies the blocks of a transfer, and yields the target slots that get none."""
        if transfer.target is Tier.HOST and transfer.source is not Tier.GPU:
            return self._arrivals.bring(transfer, lost)
        if transfer.patience_s is not None:
            return self._fetch(transfer, fence)
        if self._disk is not None and transfer.target is Tier.DISK:
            return self._disk.store(transfer, lost)
        if self._disk is not None and transfer.source is Tier.DISK:
            return self._disk.load(transfer, lost, fence, self.meter.add_damaged)
        if layers is not None:
            return self._load_layers(transfer, lost, fence, layers)
        return (self._load if transfer.target is Tier.GPU else self._store)(transfer, lost, fence)

    def _store(self, transfer: Transfer, lost: set[int], fence: Any) -> Iterator[int]:
        """Copies to the host, except for blocks that are `lost` already. Yields the target slots that get no block."""
        slots, unbacked = self._region.slots, new_slots()
        for batch in _batches(transfer, self._copies.batch):
            sources: list[int] = []
            targets: dict[int, BlockLabel] = {}
            for source, target, label in batch:
                slots.begin(target)
                backed = self._region.has_memory(target)
                if backed and source not in lost:
                    sources.append(source)
                    targets[target] = label
                    continue
                if not backed:
                    unbacked.append(target)
                slots.clear(target)
                yield target
            self._copies.to_host(sources, list(targets), fence)
            for target, label in targets.items():
                slots.end(target, label)
        transfer.unbacked = unbacked

    def _load(self, transfer: Transfer, lost: set[int], fence: Any) -> Iterator[int]:
        """Copies to the GPU, except for blocks that are `lost` or damaged. Yields the target slots that get no block."""
        for batch in _batches(transfer, self._copies.batch):
            sources, targets = [], []
            for source, target, _ in batch:
                if self._can_load(source, lost) and self._is_sound(source, self._verifies()):
                    sources.append(source)
                    targets.append(target)
                else:
                    yield target
            self._copies.to_gpu(sources, targets, fence)

    def _load_layers(self, transfer: Transfer, lost: set[int], fence: Any, layers: LayerEvents) -> Iterator[int]:
        """Does the same layer by layer. The bytes are compared with their checksums while the device may still copy them."""
        sources, targets = [], []
        for source, target in zip(transfer.source_slots, transfer.target_slots, strict=True):
            if self._can_load(source, lost) and self._is_sound(source, verify=False):
                sources.append(source)
                targets.append(target)
            else:
                yield target
        last: LayerEvent | None = None
        for last in self._copies.layers_to_gpu(sources, targets, fence):
            layers.arrived(last)
        for source, target in zip(sources, targets, strict=True):
            if self._verifies() and not self._is_sound(source, verify=True):
                yield target
        if last is not None:
            last.synchronize()

    def _can_load(self, source: int, lost: set[int]) -> bool:
        """Whether a block is not `lost` and its memory can be copied from. Otherwise its slot is emptied.

        The memory of a block that an earlier process has stored may not be pinned yet. It is now: CUDA does not copy what is
        pinned in part.
        """
        if source not in lost and self._region.has_memory(source):
            return True
        self._region.slots.clear(source)
        return False

    def _is_sound(self, source: int, verify: bool) -> bool:
        """Whether a block can be believed. Otherwise it is counted, and its slot is emptied."""
        if self._region.slots.is_sound(source, verify):
            return True
        self.meter.add_damaged(_LOADS)
        self._region.slots.clear(source)
        return False

    def _fetch(self, transfer: Transfer, fence: Any) -> Iterator[int]:
        """Copies blocks of other workers to the GPU. Yields the target slots that get no block."""
        assert self._others is not None
        landing = self._landings[transfer.source]
        pairs = zip(transfer.target_slots, transfer.labels, strict=True)
        while batch := list(islice(pairs, landing.blocks)):
            slots = [slot for slot, _ in batch]
            if transfer.given_up:  # others wait for the same lane
                yield from slots
                continue
            read = self._others.read(transfer.source, [label.key for _, label in batch], landing.rows(slots))
            landing.deliver({row: slot for row, slot in enumerate(slots) if read[row]}, fence)
            yield from (slot for slot, arrived in zip(slots, read, strict=True) if not arrived)

    def _verifies(self) -> bool:
        """Whether the next block is compared with its checksum."""
        self._verify_due += self._verify_share
        if self._verify_due < 1.0:
            return False
        self._verify_due -= 1.0
        return True


_NO_LABEL = BlockLabel(b"", b"", b"", b"")


def _batches(transfer: Transfer, size: int) -> Iterator[list[tuple[int, int, BlockLabel]]]:
    labels = transfer.labels or [_NO_LABEL] * len(transfer)
    pairs = zip(transfer.source_slots, transfer.target_slots, labels, strict=True)
    while batch := list(islice(pairs, size)):
        yield batch
