"""A cache without bytes that is shown the requests of another: what it gives up is worth least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.observer import GuardStat
from pbkv_cluster.cache.owners import EndListener
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, TOKEN_BYTES
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.reuse.model.access_model import AccessUpdate

_NAMESPACE = Namespace("hashed-chunks", "", "", "")
_LAST_TOKEN = bytes(TOKEN_BYTES)  # of every prompt: a cache leaves the last token to be computed, and vLLM has counted it


class RunningRequest:
    """A request in the reference cache, from its first chunk to its end."""

    __slots__ = ("chunks", "handle", "tokens", "tracked")

    def __init__(self, handle: CacheHandle) -> None:
        self.handle: CacheHandle | None = handle  # None: it had to make room for others
        self.chunks = list[bytes]()  # hashes
        self.tokens = bytearray()  # the same as blocks
        self.tracked = 0  # of them: in the cache, and known to `ReferenceCache._held`

    def extend(self, chunks: Iterable[bytes]) -> None:
        """The request has these chunks from its start; those it had are among them."""
        added = list(chunks)[len(self.chunks) :]
        self.chunks.extend(added)
        self.tokens += _as_blocks(added)


class ReferenceCache:
    """`KVCache` with policy `pbkv` and its guard, over hashes of chunks instead of tokens.

    Chunks that it gives up, and such as come back to it, are told to two listeners. What a running request uses it never gives
    up; where that leaves no room for another one, the request that began first is taken to have ended.
    """

    def __init__(
        self,
        capacity: int,
        config: CacheConfig,
        clock: Clock,
        on_given_up: Callable[[bytes], None],
        on_kept: Callable[[bytes], None],
        silence_s: float,
        max_workflows: int,
        on_ended: EndListener,
    ) -> None:
        """Args:
        capacity: chunks.
        config: of the policy and the guard.
        clock: for everything.
        on_given_up: told the hash of a chunk that has been given up.
        on_kept: told the hash of a chunk that has entered, perhaps again.
        silence_s: seconds without a request after which a workflow has ended.
        max_workflows: that are open; beyond, the one that was silent for longest has ended.
        on_ended: told the access log of each ended workflow.
        """
        alone = config.model_copy(update={"policy": "pbkv", "host_policy": "", "prefetch": "none", "write_through": False})
        self._cache: KVCache = make_cache({Tier.GPU: capacity}, alone, NullTransferEngine(), clock)
        self._cache.workflows.on_ended = on_ended
        self._silence_s = silence_s
        self._max_workflows = max_workflows
        self._on_given_up = on_given_up
        self._on_kept = on_kept
        self._running: dict[RunningRequest, None] = {}  # that have a handle, the one that began first at the front
        self._held: dict[int, bytes] = {}  # hash of the chunk that each slot was last given to
        self._slots: dict[bytes, int] = {}  # the same the other way round

    @property
    def chunks(self) -> int:
        """Chunks that it keeps, or has given up without another in their place yet."""
        return len(self._slots)

    def begin(self, workflow: str, agent: str, workload: str, chunks: Sequence[bytes]) -> RunningRequest | None:
        """A request begins whose prompt consists of these chunks. None: its prompt alone is too large for the cache."""
        self._end_silent()
        tokens = _as_blocks(chunks) + _LAST_TOKEN
        owner = self._cache.workflows.find(workflow)
        number = 0 if owner is None else len(owner.record.steps)
        step = StepIdentity(_NAMESPACE, workflow, agent, number, len(tokens) // TOKEN_BYTES)
        while (handle := self._cache.open(step, tokens)) is None:
            if not self._running:
                return None
            self._close(next(iter(self._running)))
        if workload:
            handle.owner.workload = workload
        running = RunningRequest(handle)
        running.extend(chunks)
        self._running[running] = None
        self._track(running)
        return running

    def advance(self, running: RunningRequest, blocks: int) -> None:
        """The tier has, or is about to get, the first `blocks` chunks of a request."""
        handle = running.handle
        if handle is None or blocks <= running.tracked:
            return
        if not self._cache.grow(handle, blocks * BLOCK_TOKENS):
            self._close(running)
            return
        self._cache.commit(handle, running.tokens, blocks * BLOCK_TOKENS)
        self._track(running)

    def finish(self, running: RunningRequest) -> None:
        """A request has ended. Those of its chunks that the tier did not get are noted in the record of its workflow."""
        if running.handle is not None:
            running.handle.recorded.extend(running.tokens, len(running.chunks))
            self._close(running)

    def retire(self, workflow: str) -> None:
        """A workflow has ended."""
        self._cache.retire(workflow)

    def apply(self, forecast: Forecast) -> bool:
        """Applies a forecast. False if it is old, or of a workflow that is not known here."""
        return self._cache.apply(forecast)

    def learnt(self, update: AccessUpdate) -> None:
        """Takes over what has been learnt from ended workflows."""
        self._cache.workflows.learnt(update)

    def clear(self) -> None:
        """The tier is empty, and requests that ran are over. Records of workflows and what was learnt stay."""
        for running in list(self._running):
            self._close(running)
        self._cache.clear()
        self._held.clear()
        self._slots.clear()

    def guard(self) -> GuardStat | None:
        """What the guard has seen and done; None: it is switched off."""
        return self._cache.guard()

    def check_integrity(self) -> None:
        """Raises AssertionError where it contradicts itself."""
        self._cache.check_integrity()
        held = {chunk for running in self._running for chunk in running.chunks[: running.tracked]}
        assert held <= self._slots.keys(), "a chunk in use was given up"
        assert {chunk: slot for slot, chunk in self._held.items()} == self._slots

    def _end_silent(self) -> None:
        workflows = self._cache.workflows
        for workflow in workflows.silent(self._silence_s):
            self._cache.retire(workflow)
        if len(workflows.all()) >= self._max_workflows:
            self._cache.retire(next(iter(workflows.all())).id)

    def _track(self, running: RunningRequest) -> None:
        """Notes which slots the chunks of a request have. Whatever was in these before has been given up."""
        assert running.handle is not None
        committed = running.handle.committed
        for at, slot in enumerate(running.handle.table.slots[running.tracked : committed], running.tracked):
            chunk = running.chunks[at]
            before = self._held.get(slot)
            if before == chunk:
                continue
            if before is not None:
                del self._slots[before]
                self._on_given_up(before)
            if (elsewhere := self._slots.get(chunk)) is not None:
                del self._held[elsewhere]
            self._held[slot], self._slots[chunk] = chunk, slot
            self._on_kept(chunk)
        running.tracked = committed

    def _close(self, running: RunningRequest) -> None:
        assert running.handle is not None
        self._cache.close(running.handle)
        running.handle = None
        del self._running[running]


def _as_blocks(chunks: Iterable[bytes]) -> bytes:
    """Hashes of chunks, each as the tokens of one block."""
    return b"".join(chunk[:BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0") for chunk in chunks)
