"""Turns vLLM's calls into requests of workflows for the reference cache, and what that gives up into an order of chunks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import Config
from pbkv_cluster.integrations.vllm_policy.chunk_order import ChunkOrder, group_of
from pbkv_cluster.integrations.vllm_policy.conversations import Conversations
from pbkv_cluster.integrations.vllm_policy.learning import Knowledge
from pbkv_cluster.integrations.vllm_policy.reference_cache import ReferenceCache, RunningRequest
from pbkv_cluster.integrations.vllm_policy.request import Naming, RequestChunks, RequestContext, forecasts_of, naming_of

_AGENT_DIGITS = 12  # of the hash of a prompt's first chunk, the name of an agent that has none


class Chunk(Protocol):
    """What is used of vLLM's `ChunkStatus`."""

    ref_cnt: int  # transfers that read it; -1: it is still being written


ChunkT = TypeVar("ChunkT", bound=Chunk)


class _Seen:
    """A request that has been shown to the reference cache."""

    __slots__ = ("chunks", "naming", "running")

    def __init__(self, naming: Naming, chunks: RequestChunks, running: RunningRequest | None) -> None:
        self.naming = naming
        self.chunks = chunks
        self.running = running  # None: it was too large


class Advisor(Generic[ChunkT]):
    """The chunks of a CPU tier, and which of them to evict."""

    def __init__(self, capacity: int, config: Config, clock: Clock, knowledge: Knowledge) -> None:
        """Args:
        capacity: chunks of the tier.
        config: sections `cache` and `vllm`.
        clock: for everything.
        knowledge: learns from ended workflows.
        """
        self._capacity = capacity
        self._config = config
        self._clock = clock
        self._knowledge = knowledge
        self._conversations = Conversations()
        self.order: ChunkOrder[ChunkT] = ChunkOrder(lambda chunk: chunk.ref_cnt == 0)
        self.reference: ReferenceCache | None = None  # made with the first request, which shows how many groups there are

    def storing(self, keys: Iterable[bytes], context: RequestContext) -> None:
        """The tier is about to take these chunks of a running request; it has those before them."""
        seen = context.get_state(_Seen)
        if seen is None:
            chunks = RequestChunks()
            chunks.update(context)
            seen = self._begin(context, chunks, len(chunks.hashes))
        reach = seen.chunks.reach(keys)
        if not reach:  # they are of the output
            seen.chunks.update(context)
            reach = seen.chunks.reach(keys)
        if seen.running is not None and self.reference is not None:
            seen.running.extend(seen.chunks.hashes)
            self.reference.advance(seen.running, reach)

    def finished(self, keys: Iterable[bytes], context: RequestContext) -> None:
        """A request has ended, and these are the chunks that the tier has, or has had, of it."""
        keys = list(keys)
        seen = context.get_state(_Seen)
        if seen is None:  # the tier had all of its prompt
            chunks = RequestChunks()
            chunks.update(context)
            seen = self._begin(context, chunks, chunks.reach(keys))
        else:
            seen.chunks.update(context)
        assert self.reference is not None
        if seen.running is not None:
            seen.running.extend(seen.chunks.hashes)
            self.reference.advance(seen.running, seen.chunks.reach(keys))
            self.reference.finish(seen.running)
        if seen.naming.final:
            self.reference.retire(seen.naming.workflow)

    def clear(self) -> None:
        """The tier is empty, and requests that ran are over. What was learnt stays."""
        self.order.clear()
        if self.reference is not None:
            self.reference.clear()

    def _begin(self, context: RequestContext, chunks: RequestChunks, prompt_chunks: int) -> _Seen:
        reference = self.reference
        if reference is None:
            reference = self.reference = self._make_reference(len(set(map(group_of, context._offload_key_positions))))
        for update in self._knowledge.updates():
            reference.learnt(update)
        naming, prompt = naming_of(context), chunks.hashes[:prompt_chunks]
        naming = Naming(
            naming.workflow or self._conversations.workflow(prompt),
            naming.agent or (prompt[0].hex()[:_AGENT_DIGITS] if prompt else ""),
            naming.workload,
            naming.final,
        )
        seen = _Seen(naming, chunks, reference.begin(naming.workflow, naming.agent, naming.workload, prompt))
        context.set_state(seen)
        for forecast in (*self._knowledge.forecasts(), *forecasts_of(context)):
            reference.apply(forecast)
        return seen

    def _make_reference(self, groups: int) -> ReferenceCache:
        settings = self._config.vllm
        return ReferenceCache(
            max(1, self._capacity // max(1, groups)),
            self._config.cache,
            self._clock,
            self.order.give_up,
            self.order.keep,
            settings.silence_s,
            settings.max_workflows,
            self._knowledge.report,
        )
