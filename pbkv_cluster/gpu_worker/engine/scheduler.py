"""Continuous batching: chooses which tokens of which sequences go through the model next."""

import heapq
from collections import Counter
from collections.abc import Iterator

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import EngineConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS, blocks_for
from pbkv_cluster.gpu_worker.engine.sequence import Chunk, Sequence


class Scheduler:
    """Fills a batch with decodes, then chunks of prefills, then newly admitted sequences.

    When blocks run out, the sequence that was admitted last is preempted: it gives its blocks back and waits again.
    """

    def __init__(self, cache: KVCache, config: EngineConfig, clock: Clock) -> None:
        self._cache = cache
        self._config = config
        self._clock = clock
        self.running: list[Sequence] = []  # in order of admission
        self._waiting: list[tuple[int, int, Sequence]] = []  # a heap by priority, then arrival
        self.decisions: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. One that was preempted is queued by its first arrival."""
        heapq.heappush(self._waiting, (-sequence.request.priority, sequence.arrival, sequence))
        self._cache.queued(sequence.request.workflow, sequence.request.step, bytes(sequence.tokens))

    def remove(self, sequence: Sequence) -> None:
        """Removes a running or waiting sequence, and frees its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
            self._cache.queued(sequence.request.workflow, sequence.request.step, b"")
        self._release(sequence)

    def schedule(self) -> list[Chunk]:
        """The next batch; empty only when there is nothing to run.

        A sequence whose prefix is still being loaded waits while others run. When no other can run, this blocks until it can.
        """
        self._cache.poll()
        while True:
            chunks = self._next_batch()
            late = None if chunks else next((sequence.handle for sequence in self.running if not _ready(sequence)), None)
            if late is None:
                return chunks
            self._cache.wait(late)

    def _next_batch(self) -> list[Chunk]:
        budget = self._config.max_batch_tokens
        chunks: list[Chunk] = []
        for sequence in self._by_need():
            if budget == 0:
                break
            if sequence.handle is None or not _ready(sequence):
                continue  # preempted by a sequence earlier in this loop, or waiting for its prefix
            count = min(sequence.total - sequence.computed, self._config.prefill_chunk_tokens, budget)
            if self._make_room(sequence, count, chunks):
                chunks.append(Chunk(sequence, sequence.computed, count))
                budget -= count
        for sequence in self.admissions() if budget else ():
            if not _ready(sequence):
                continue
            count = min(sequence.total - sequence.computed, self._config.prefill_chunk_tokens, budget)
            if count == 0 or not self._grow(sequence, count):
                break
            chunks.append(Chunk(sequence, sequence.computed, count))
            budget -= count
            if budget == 0:
                break
        return chunks

    def _by_need(self) -> list[Sequence]:
        return sorted(self.running, key=lambda sequence: sequence.total - sequence.computed > 1)

    def admissions(self) -> Iterator[Sequence]:
        """Admits waiting sequences one at a time, until none waits or one does not fit."""
        while self._waiting and len(self.running) < self._config.max_running:
            sequence = self._waiting[0][2]
            if not self._admit(sequence):
                self.deferred(1)
                return
            heapq.heappop(self._waiting)
            self.running.append(sequence)
            yield sequence

    def deferred(self, times: int) -> None:
        """Counts times that the first waiting sequence did not fit."""
        self.decisions["admission_deferred_no_room"] += times

    def _admit(self, sequence: Sequence) -> bool:
        usage = sequence.usage
        start = self._clock.now()
        sequence.handle = handle = self._cache.open(
            sequence.step,
            bytes(sequence.tokens),
            reserve=sum(_outstanding(other) for other in self.running),
            again=sequence.first_scheduled_at is not None,
        )
        if handle is None:
            return False
        now = self._clock.now()
        usage.load_s += now - start
        sequence.computed = handle.committed * BLOCK_TOKENS
        if sequence.first_scheduled_at is None:
            sequence.first_scheduled_at = now
            usage.queue_s = start - sequence.arrived_at
            left = sequence.prompt_tokens
            for tier, tokens in handle.delivered.items():
                usage.delivered[tier] = min(tokens, left)  # of the prompt only: a lost worker's output may be cached too
                left -= usage.delivered[tier]
        return True

    def _grow(self, sequence: Sequence, count: int) -> bool:
        assert sequence.handle is not None
        if sequence.computed + count <= len(sequence.handle.table) * BLOCK_TOKENS:
            return True  # its last block has room, as in most decodes
        return self._cache.grow(sequence.handle, sequence.computed + count)

    def _make_room(self, sequence: Sequence, count: int, chunks: list[Chunk]) -> bool:
        """Allocates blocks for `count` more tokens. Preempts the newest sequences that are not in `chunks`, if it must.

        Returns whether the sequence itself still runs.
        """
        while not self._grow(sequence, count):
            scheduled = {id(chunk.sequence) for chunk in chunks}
            victim = next((other for other in reversed(self.running) if id(other) not in scheduled), sequence)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.decisions["preempt"] += 1
        sequence.usage.preemptions += 1
        self.running.remove(sequence)
        self._release(sequence)
        self.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        if sequence.handle is not None:
            self._cache.close(sequence.handle)
            sequence.handle = None
        sequence.computed = 0

    def computed(self, chunk: Chunk) -> None:
        """Called when the chunk's KV is in the pool: blocks that it filled enter the cache."""
        sequence = chunk.sequence
        assert sequence.handle is not None
        sequence.computed = chunk.start + chunk.count
        if sequence.computed // BLOCK_TOKENS > sequence.handle.committed:
            self._cache.commit(sequence.handle, sequence.tokens, sequence.computed)


def _ready(sequence: Sequence) -> bool:
    """Whether everything that was loaded for a running sequence has arrived."""
    assert sequence.handle is not None
    return sequence.handle.ready


def _outstanding(sequence: Sequence) -> int:
    """Blocks that a running sequence still has to allocate for its tokens so far and the next one."""
    assert sequence.handle is not None
    return max(0, blocks_for(sequence.total + 1) - len(sequence.handle.table))
