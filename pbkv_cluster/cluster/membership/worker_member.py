"""What all workers share, whoever's engine they run: an entry in the directory, blocks in the index, and KV events."""

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.member_base import MemberBase
from pbkv_cluster.cluster.membership.metrics_endpoint import PutFigures
from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.metrics.metric import Source
from pbkv_cluster.gpu_worker.facts import WorkerFacts
from pbkv_cluster.store.cluster_index import IndexPublisher, WorkerEntry

if TYPE_CHECKING:
    from pbkv_cluster.store.kv_events.event_publisher import KvEventPublisher

WORKER_PREFIX = "worker-"  # of workers' names; a number follows


class WorkerMemberBase(MemberBase):
    """A worker, with its blocks in the index."""

    def __init__(self, context: MemberContext, worker_id: str) -> None:
        super().__init__(context)
        self._worker_id = worker_id
        self._publisher: IndexPublisher | None = None
        self._events: KvEventPublisher | None = None  # where there are such events

    def _publish_events(self) -> None:
        """Publishes KV events from now on, if they are configured."""
        events = self._context.config.kv_events
        if not events.endpoint:
            return
        from pbkv_cluster.store.kv_events.event_publisher import KvEventPublisher

        number = self._worker_id.removeprefix(WORKER_PREFIX)
        rank = int(number) if number.isdecimal() else 0
        events = events.of_worker(rank)
        self._events = publisher = KvEventPublisher(
            events.endpoint, events.replay_endpoint, events.topic, events.buffer_bytes, rank
        )

        async def stop() -> None:
            await asyncio.to_thread(publisher.stop)

        self._add_part(stop)

    def _changed(self, label: BlockLabel, residency: Residency) -> None:
        """A block lies elsewhere now. Thread-safe."""
        if self._publisher is not None:  # until then, the publisher's first snapshot covers it
            self._publisher.record(label.key, residency)
        if self._events is not None:
            self._events.record(label, residency)

    async def _announce_worker(
        self,
        facts: WorkerFacts,
        residency: Callable[[], Awaitable[Mapping[bytes, Residency]]],
        put: PutFigures,
        problems: Callable[[], Sequence[str]],
    ) -> None:
        """Announces a worker that serves, its blocks, its metrics, and what does not work.

        Args:
            facts: of the worker.
            residency: returns every block that it has, and where each lies.
            put: its metrics.
            problems: what does not work as it should.
        """
        entry = WorkerEntry(
            worker_id=self._worker_id,
            incarnation=uuid.uuid4().hex,
            node_id=self._context.node_id,
            address=facts.address,
            pid=os.getpid(),
            namespace=facts.namespace,
            vocab_size=facts.vocabulary,
            max_context_tokens=facts.max_context,
            gpu_blocks=facts.gpu_blocks,
            host_blocks=facts.host_blocks,
            block_bytes=facts.block_bytes,
            engine=facts.engine,
            output_address=facts.output_address,
            reads_siblings=facts.reads_siblings,
            reads_peers=facts.reads_peers,
        )
        interval_s = self._context.config.redis.flush_interval_s
        self._publisher = IndexPublisher(
            self._redis.directory, self._redis.blocks, entry, residency, flush_interval_s=interval_s
        )
        # Added after the worker, so stopped before it: no step is sent to a worker that is stopping.
        self._add_part(self._publisher.stop, self._publisher.wait)
        await self._publisher.start()
        await self._report_problems(self._worker_id, problems)
        await self._serve_metrics(put, Source.WORKER)


def with_model(config: Config) -> Config:
    """The configuration with a model to load: the small random one if it names none."""
    if config.model.path:
        return config
    from pbkv_cluster.gpu_worker.model.random_model import cached

    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(cached())})})
