"""The members of a cluster: gateways, predictor, host stores and workers, each connected to the others."""

import asyncio
import os
from importlib import import_module
from pathlib import Path

from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.member_base import MemberBase, collect_rarely
from pbkv_cluster.cluster.membership.worker_member import WorkerMemberBase, with_model
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.locations.residency import SHARED
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.core.metrics.metric import Source
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.text.tokenizers_only import use_tokenizers_only
from pbkv_cluster.rpc.security import this_process
from pbkv_cluster.rpc.services import GATEWAY, HOST_STORE, PREDICTOR
from pbkv_cluster.store.block_map import BlockMap
from pbkv_cluster.store.cluster_index import (
    Directory,
    GatewayEntry,
    IndexMirror,
    NodeEntry,
)
from pbkv_cluster.store.peers.addresses import PeerAddresses


class PredictorMember(MemberBase):
    """The predictor service."""

    def prepare(self) -> None:
        import_module("pbkv_cluster.predictor_service.server")
        from pbkv_cluster.predictor_service.predictor.warm_up import warm_up

        warm_up(self._context.config.predictor)

    async def start(self) -> str:
        from pbkv_cluster.predictor_service.server import PredictorServer

        config = self._context.config.predictor
        state_dir = self._context.state_dir
        state = Path(config.state_path) if config.state_path else Path(state_dir, "predictor.state") if state_dir else None
        server = PredictorServer(config, SystemClock(), state, lease_s=2 * self._context.config.gateway.workflow_lease_s)
        self._add_part(server.stop, server.wait)
        address = await server.start(self._context.host, 0)
        collect_rarely()
        await self._announce_service(PREDICTOR, address)
        await self._report_problems(PREDICTOR, lambda: server.problems)
        await self._serve_metrics(server.figures.put, Source.PREDICTOR)
        return address


class HostStoreMember(MemberBase):
    """The host store of a node."""

    def __init__(self, context: MemberContext, workers: int = 1) -> None:
        """`workers`: how many the node is meant to have."""
        super().__init__(context)
        self._meant_for = workers

    def prepare(self) -> None:
        import_module("pbkv_cluster.store.arena.arena")
        import_module("pbkv_cluster.store.server")
        import_module("pbkv_cluster.store.peers.transports")

    async def start(self) -> str:
        from pbkv_cluster.store.arena.arena import Arena
        from pbkv_cluster.store.arena.machine import total_memory
        from pbkv_cluster.store.arena.segment import Memory
        from pbkv_cluster.store.peers.handshake import new_token
        from pbkv_cluster.store.peers.transports import make_transport
        from pbkv_cluster.store.server import HostStore

        config = self._context.config.host_store
        capacity = config.memory_bytes or int(total_memory() * config.memory_share)
        # The id of the node tells this cluster from another of the same name on this machine.
        name = f"pbkv-arena:{self._context.config.cluster.name}:{self._context.node_id}"
        arena = Arena(
            name, capacity, config.lease_s, SystemClock(), self._meant_for, Memory(config.huge_pages, config.numa_node)
        )
        token = new_token()
        peers = make_transport(config.peer_transport).serve(arena.path, token, this_process().for_members())
        store = HostStore(arena, self._workers, peers)
        self._add_part(store.stop)
        address = await store.start(self._context.host, peer_port=config.peer_port)
        entry = NodeEntry(self._context.node_id, self._context.host, address, arena.capacity, store.peer_address, token.hex())
        directory = self._redis.directory
        await self._announce(lambda: directory.announce_node(entry), lambda: directory.withdraw_node(entry.node_id))
        await self._serve_metrics(store.figures.put, Source.HOST_STORE)
        return address

    async def _workers(self) -> dict[str, str]:
        """Addresses of this node's workers by id."""
        workers = await self._redis.directory.workers()
        return {worker.worker_id: worker.address for worker in workers if worker.node_id == self._context.node_id}


class _NodeServices:
    """Finds the host store of one node."""

    def __init__(self, directory: Directory, node_id: str) -> None:
        self._directory = directory
        self._node_id = node_id

    async def service_address(self, name: str) -> str | None:
        if name != HOST_STORE:
            return None
        return next((node.address for node in await self._directory.nodes() if node.node_id == self._node_id), None)


class WorkerMember(WorkerMemberBase):
    """A GPU worker with our own engine."""

    def prepare(self) -> None:
        import_module("pbkv_cluster.gpu_worker.server")

    async def start(self) -> str:
        from pbkv_cluster.gpu_worker.server import WorkerServer
        from pbkv_cluster.store.figures import PeerSourceFigures
        from pbkv_cluster.store.peers.source import PeerSource
        from pbkv_cluster.store.peers.transports import make_transport

        self._publish_events()
        config = self._context.config
        directory, blocks = self._redis.directory, BlockMap(SHARED)
        mirror = IndexMirror(self._redis.blocks, directory, SystemClock(), blocks, besides=self._worker_id)
        self._add_part(mirror.stop, mirror.wait)
        mirror.start()
        addresses = PeerAddresses(directory, config.security.tls_name)
        self._add_part(addresses.stop, addresses.wait)
        addresses.start()
        transport = make_transport(config.host_store.peer_transport)
        peers = PeerSource(addresses.find, transport, tls=this_process().to_members())
        worker = WorkerServer(
            await asyncio.to_thread(with_model, config),
            self._worker_id,
            SystemClock(),
            predictor=directory,
            host_store=_NodeServices(directory, self._context.node_id),
            on_change=self._changed,
            blocks=blocks,
            node_id=self._context.node_id,
            peers=peers,
            siblings=self._siblings,
        )
        self._add_part(worker.stop, worker.wait)
        # Before the worker, whose copies may be waiting for another node.
        self._add_part(lambda: asyncio.to_thread(peers.close))
        facts = await worker.start(self._context.host)
        of_peers = PeerSourceFigures(peers)

        async def put(figures: Figures) -> None:
            await worker.figures.put(figures)
            await of_peers.put(figures)

        await self._announce_worker(facts, worker.residency, put, lambda: worker.problems)
        collect_rarely()
        return facts.address

    async def _siblings(self) -> list[str]:
        """Addresses of the node's other workers that read each other's host memory."""
        workers = await self._redis.directory.workers()
        on_node = (worker for worker in workers if worker.node_id == self._context.node_id and worker.reads_siblings)
        return [worker.address for worker in on_node if worker.worker_id != self._worker_id]


class GatewayMember(MemberBase):
    """A front door."""

    def prepare(self) -> None:
        import_module("pbkv_cluster.gateway.server")
        if self._context.config.gateway.http_port >= 0:
            import_module("pbkv_cluster.gateway.http.server")
        _load_codec(with_model(self._context.config))

    async def start(self) -> str:
        from pbkv_cluster.gateway.server import GatewayServer

        config = await asyncio.to_thread(with_model, self._context.config)
        codec = await asyncio.to_thread(_load_codec, config)
        name = self._context.name or GATEWAY
        directory = self._redis.directory
        server = GatewayServer(config, directory, self._redis.blocks, codec, SystemClock(), name)
        self._add_part(server.stop, server.wait)
        address, http_address = await server.start(self._context.host, config.gateway.port), ""
        if config.gateway.http_port >= 0:
            from pbkv_cluster.gateway.http.server import HttpServer

            http = HttpServer(config, server)
            self._add_part(http.stop)
            http_address = await http.start(self._context.host, config.gateway.http_port)
        collect_rarely()
        entry = GatewayEntry(name, server.peers.incarnation, self._context.node_id, address, http_address, os.getpid())
        await self._announce(lambda: directory.announce_gateway(entry), lambda: directory.withdraw_gateway(entry))
        await self._serve_metrics(server.figures.put, Source.GATEWAY)
        return address


def _load_codec(config: Config) -> TextCodec:
    """The tokenizer, for a process without a model."""
    use_tokenizers_only()
    return TextCodec.load(config.model.path, config.model.revision, config.model.chat_template)
