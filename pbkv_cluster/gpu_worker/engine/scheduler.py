"""Continuous batching: chooses which tokens of which sequences go through the model next."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import EngineConfig
from pbkv_cluster.core.config.engine import parse_weights
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gpu_worker.engine.loads import Loads
from pbkv_cluster.gpu_worker.engine.prefix_wait import find_wait
from pbkv_cluster.gpu_worker.engine.queue.order import Order
from pbkv_cluster.gpu_worker.engine.queue.step_queue import StepQueue
from pbkv_cluster.gpu_worker.engine.sequence import Chunk, Sequence


class Scheduler:
    """Fills a batch with decodes, then chunks of prefills, then newly admitted sequences, in the order of the queue (`queue`).

    When blocks run out, the sequence that was admitted last is preempted: it gives its blocks back and waits again. A sequence
    whose prefix a running one computes now waits for it while others are admitted, if that is faster (see `prefix_wait`), and
    one whose prefix is being loaded waits unless it may begin before that (see `loads`). One whose output takes it beyond the
    model's rotary switch is queued again, too: its KV is not valid in a sequence that long.
    """

    def __init__(
        self,
        cache: KVCache,
        config: EngineConfig,
        clock: Clock,
        compute_seconds: Callable[[int], float],
        batch_seconds: Callable[[int], float],
    ) -> None:
        """Args:
        cache: that sequences are opened in.
        config: limits of the batches.
        clock: the engine's.
        compute_seconds: how long the prefill of a number of tokens takes.
        batch_seconds: how long a batch of so many tokens takes at least.
        """
        self._cache = cache
        self.compute_seconds = compute_seconds
        self._config = config
        self._clock = clock
        self.running: list[Sequence] = []  # in order of admission
        self._queue = StepQueue[Sequence](parse_weights(config.tenant_weights))
        self._order = Order(config)
        self._held: list[Sequence] = []  # out of the queue while they wait for a prefix
        self.decisions: Counter[str] = Counter()
        self.loads = Loads(cache, batch_seconds, self.decisions)

    @property
    def waiting(self) -> int:
        """Sequences that have not been admitted."""
        return len(self._queue) + len(self._held)

    def waiting_of(self, tenant: str) -> int:
        """Those of one tenant."""
        return self._queue.waiting_of(tenant) + sum(sequence.tenant == tenant for sequence in self._held)

    @property
    def waiting_tokens(self) -> int:
        """Tokens of these, whether they are cached or not."""
        return sum(sequence.total for sequence in (*self._queue, *self._held))

    def next_prompts(self, most: int) -> list[tuple[Namespace, bytes]]:
        """Namespaces and tokens of the sequences at the head of the queue, in the order of admission."""
        waiting = [*self._held[:most], *self._queue.first(most - len(self._held))]
        return [(each.namespace, bytes(each.tokens)) for each in waiting]

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. One that was preempted keeps its rank."""
        if sequence.rank is None:
            cached = sum(sequence.usage.captured.values()) / sequence.prompt_tokens
            sequence.rank = self._order.rank(sequence.arrived_at, sequence.arrival, sequence.request.priority, cached)
        self._queue.add(sequence, sequence.tenant, sequence.rank)
        self._cache.queued(sequence.request.workflow, sequence.request.step, bytes(sequence.tokens))

    def remove(self, sequence: Sequence) -> None:
        """Removes a running or waiting sequence, and frees its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self._held = [each for each in self._held if each is not sequence]
            self._queue.remove(sequence, sequence.tenant)
            self._cache.queued(sequence.request.workflow, sequence.request.step, b"")
        self._release(sequence)

    def schedule(self, wait_s: float | None = None) -> list[Chunk]:
        """The next batch; empty when there is nothing to run, or nothing can run within `wait_s` seconds.

        When nothing else can run, sequences begin before their loads have arrived; where they cannot, this waits for the loads.
        """
        self._cache.poll()
        while True:
            self._recover()
            if chunks := self._next_batch():
                return chunks
            late = [each for each in self.running if not self.loads.have_arrived(each)]
            if late:
                if chunks := self._next_batch(self.loads.soonest(late)):
                    return chunks
                assert late[0].handle is not None
                self._cache.wait(late[0].handle, wait_s)
            elif not self._queue or not self._cache.tiers.in_flight.wait_for_late(wait_s):
                return []
            if wait_s is not None:
                return []

    def _recover(self) -> None:
        """Queues sequences again whose loads have failed: they compute what is lost. And those of which the cache has more than
        it had: they load it.
        """
        for handle in self._cache.broken():
            sequence = next(each for each in self.running if each.handle is handle)
            self.decisions["preempt_load_failed"] += 1
            sequence.fetch_failed = sequence.fetch_failed or bool(handle.fetched)
            if not sequence.usage.computed_tokens:  # so that what it is told to have got is what it gets now
                sequence.first_scheduled_at = None
            self._preempt(sequence)
        for handle in self._cache.continued():
            sequence = next(each for each in self.running if each.handle is handle)
            self.decisions["reopen_continued"] += 1
            sequence.continued = True
            self._queue_again(sequence)

    def _next_batch(self, stall: float = 0.0) -> list[Chunk]:
        budget = self._config.max_batch_tokens
        chunks: list[Chunk] = []
        for sequence in self._by_need():
            if budget == 0:
                break
            if sequence.handle is None:
                continue  # preempted by a sequence earlier in this loop
            count = min(sequence.total - sequence.computed, self._config.prefill_chunk_tokens, budget)
            if not self.loads.allow(sequence, self._config.max_batch_tokens - budget + count, stall):
                continue  # waiting for its prefix
            if self._make_room(sequence, count, chunks):
                chunks.append(Chunk(sequence, sequence.computed, count))
                budget -= count
        for sequence in self.admissions() if budget else ():
            count = min(sequence.total - sequence.computed, self._config.prefill_chunk_tokens, budget)
            if not self.loads.allow(sequence, self._config.max_batch_tokens - budget + count, stall):
                continue
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
        self._end_waits()
        while self._queue and len(self.running) < self._config.max_running:
            sequence = self._queue.head()
            if self._begins_wait(sequence):
                self._held.append(self._queue.take())
                continue
            if not self._admit(sequence):
                self.deferred(1)
                return
            self._queue.take()
            sequence.prefix_wait = None
            self.running.append(sequence)
            yield sequence

    def _begins_wait(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence had better be admitted when another one has computed its prefix."""
        now, last = self._clock.now(), sequence.prefix_wait
        if last is not None and now >= last.until:
            return False
        wait = find_wait(
            sequence, self.running, self._cached_tokens, self._config.prefill_chunk_tokens, self.compute_seconds, now
        )
        if wait is None:
            return False
        if last is not None:  # all its waits together take no longer than the first might have
            wait = replace(wait, until=last.until)
        sequence.prefix_wait = wait
        self.decisions["admission_waits_for_prefix"] += 1
        return True

    def _end_waits(self) -> None:
        """Puts sequences back into the queue whose prefix has been computed, or no longer is."""
        if not self._held:
            return
        now, held = self._clock.now(), self._held
        self._held = []
        for sequence in held:
            wait = sequence.prefix_wait
            if wait is None or wait.is_over(now):
                assert sequence.rank is not None
                self._queue.add(sequence, sequence.tenant, sequence.rank)
            else:
                self._held.append(sequence)

    def _cached_tokens(self, sequence: Sequence) -> int:
        return sum(self._cache.captured(sequence.namespace, bytes(sequence.tokens)).values())

    def deferred(self, times: int) -> None:
        """Counts times that the first waiting sequence did not fit."""
        self.decisions["admission_deferred_no_room"] += times

    def _admit(self, sequence: Sequence) -> bool:
        usage = sequence.usage
        start = self._clock.now()
        sequence.handle = handle = self._cache.open(
            sequence.step,
            bytes(sequence.tokens),
            reserve=sum(other.blocks_missing for other in (*self.running, *self._held)),
            again=sequence.first_scheduled_at is not None,
            ahead=None if sequence.fetch_failed else sum(other.total - other.computed - 1 for other in self.running),
        )
        if handle is None:
            return False
        now = self._clock.now()
        usage.load_s += now - start
        sequence.computed = handle.committed * BLOCK_TOKENS
        if sequence.first_scheduled_at is None:
            more = max(0, sequence.total - sequence.computed - sequence.charged)  # than before its loads failed, if they did
            self._queue.shares.charge(sequence.tenant, more)
            sequence.charged += more
            sequence.first_scheduled_at = now
            usage.queue_s = start - sequence.arrived_at
            sequence.note_delivered(handle)
        elif sequence.continued:
            sequence.continued = False
            sequence.note_more_delivered(handle)
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
        self._queue_again(sequence)

    def _queue_again(self, sequence: Sequence) -> None:
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

    def charge_output(self, sequence: Sequence) -> None:
        """Called for each output token of a running sequence, the last one too: its tenant has been served that much."""
        self._queue.shares.charge(sequence.tenant, 1)

    def lengthened(self, sequence: Sequence) -> None:
        """Called when an output token has been added to a running sequence."""
        if sequence.has_outgrown_namespace:
            self.decisions["rotary_switch"] += 1
            self._queue_again(sequence)
