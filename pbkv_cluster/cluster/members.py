"""The members of a cluster: gateway, predictor, host stores and workers, each wired to the rest."""

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from pbkv_cluster.cluster.announcer import Announcer
from pbkv_cluster.cluster.member_context import Index, MemberContext
from pbkv_cluster.core.background import first_failure
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.services import GATEWAY, HOST_STORE, PREDICTOR
from pbkv_cluster.store.cluster_index import Directory, IndexPublisher, NodeEntry, ServiceEntry, WorkerEntry


class _Serving:
    """What the members have in common: a connection to Redis, and a record in the directory."""

    def __init__(self, site: MemberContext) -> None:
        self._site = site
        self._index = Index(site)
        self._stack = AsyncExitStack()  # ends what was begun, the last first, whatever one part of it says
        self._stack.push_async_callback(self._index.close)
        self._parts: list[Callable[[], Awaitable[None]]] = []  # each returns never while all is well

    def _begin(self, stop: Callable[[], Awaitable[None]], wait: Callable[[], Awaitable[None]] | None = None) -> None:
        """Notes how to end something that is about to start, and how to hear of its failure."""
        self._stack.push_async_callback(stop)
        if wait is not None:
            self._parts.append(wait)

    async def wait(self) -> None:
        """Returns never while all is well; raises what ended the member."""
        await first_failure(*(asyncio.ensure_future(wait()) for wait in self._parts))

    async def stop(self) -> None:
        await self._stack.aclose()

    async def _announce_service(self, name: str, address: str) -> None:
        record = ServiceEntry(name, address, os.getpid())
        directory = self._index.directory
        await self._announce_with(
            Announcer(lambda: directory.announce_service(record), lambda: directory.withdraw_service(record), directory.lease_s)
        )

    async def _announce_with(self, announcer: Announcer) -> None:
        self._begin(announcer.stop, announcer.wait)
        await announcer.start()


class PredictorMember(_Serving):
    """The predictor service."""

    async def start(self) -> str:
        from pbkv_cluster.predictor_service.server import PredictorServer, collect_rarely

        config = self._site.config.predictor
        state_dir = self._site.state_dir
        state = Path(config.state_path) if config.state_path else Path(state_dir, "predictor.state") if state_dir else None
        server = PredictorServer(config, SystemClock(), state, lease_s=2 * self._site.config.gateway.workflow_lease_s)
        self._begin(server.stop, server.wait)
        address = await server.start(self._site.host, 0)
        collect_rarely()
        await self._announce_service(PREDICTOR, address)
        return address


class HostStoreMember(_Serving):
    """The host store of a node."""

    async def start(self) -> str:
        from pbkv_cluster.store.arena.arena import Arena
        from pbkv_cluster.store.server import HostStore

        config = self._site.config.host_store
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        arena = Arena(int(memory * config.memory_share), config.lease_s, SystemClock())
        store = HostStore(arena)
        self._begin(store.stop)
        address = await store.start(self._site.host)
        record = NodeEntry(self._site.node_id, self._site.host, address, arena.capacity)
        directory = self._index.directory
        await self._announce_with(
            Announcer(
                lambda: directory.announce_node(record),
                lambda: directory.withdraw_node(record.node_id),
                directory.lease_s,
            )
        )
        return address


class _NodeServices:
    """Finds the host store of one node."""

    def __init__(self, directory: Directory, node_id: str) -> None:
        self._directory = directory
        self._node_id = node_id

    async def service_address(self, name: str) -> str | None:
        if name != HOST_STORE:
            return None
        return next((node.address for node in await self._directory.nodes() if node.node_id == self._node_id), None)


class WorkerMember(_Serving):
    """A GPU worker, and its blocks in the index."""

    def __init__(self, site: MemberContext, worker_id: str) -> None:
        super().__init__(site)
        self._worker_id = worker_id
        self._publisher: IndexPublisher | None = None

    async def start(self) -> str:
        from pbkv_cluster.gpu_worker.server import WorkerServer

        worker = WorkerServer(
            await _with_model(self._site.config),
            self._worker_id,
            SystemClock(),
            predictor=self._index.directory,
            host_store=_NodeServices(self._index.directory, self._site.node_id),
            on_change=self._changed,
        )
        self._begin(worker.stop, worker.wait)
        facts = await worker.start(self._site.host)
        record = WorkerEntry(
            worker_id=self._worker_id,
            incarnation=uuid.uuid4().hex,
            node_id=self._site.node_id,
            address=facts.address,
            pid=os.getpid(),
            namespace=facts.namespace,
            vocab_size=facts.vocabulary,
            max_context_tokens=facts.max_context,
            gpu_blocks=facts.gpu_blocks,
            host_blocks=facts.host_blocks,
            block_bytes=facts.block_bytes,
        )
        self._publisher = IndexPublisher(
            self._index.directory,
            self._index.blocks,
            record,
            worker.residency,
            flush_interval_s=self._site.config.redis.flush_interval_s,
        )
        # Begun last, so ended first: no step is sent to a worker that is leaving.
        self._begin(self._publisher.stop, self._publisher.wait)
        await self._publisher.start()
        return facts.address

    def _changed(self, key: bytes, tiers: frozenset[Tier]) -> None:
        if self._publisher is not None:  # before, the snapshot that it starts with will tell
            self._publisher.record(key, tiers)


class GatewayMember(_Serving):
    """The front door."""

    async def start(self) -> str:
        from pbkv_cluster.gateway.server import GatewayServer

        config = await _with_model(self._site.config)
        codec = await asyncio.to_thread(TextCodec.load, config.model.path, config.model.revision)
        server = GatewayServer(config, self._index.directory, self._index.blocks, codec, SystemClock())
        self._begin(server.stop, server.wait)
        address = await server.start(self._site.host, config.gateway.port)
        await self._announce_service(GATEWAY, address)
        return address


async def _with_model(config: Config) -> Config:
    """The configuration with a model to load, where it names none the small random one."""
    if config.model.path:
        return config
    from pbkv_cluster.gpu_worker.model.random_model import cached

    path = await asyncio.to_thread(cached)
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(path)})})
