"""A thread that ties an engine's process to its node: it takes a region of the arena, renews it, and announces the blocks.

The host store may end at any time: what has been mapped stays. It is looked for again every few seconds.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
import uuid
from pathlib import Path

from pbkv_cluster.core.blocks import BlockLabel, Namespace
from pbkv_cluster.core.errors import PbkvError, ResourceExhausted, Unavailable
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.integrations.engine_store.node_store import launcher
from pbkv_cluster.integrations.engine_store.other_nodes import LEASE_S, NODE_PREFIX, OtherNodes
from pbkv_cluster.integrations.engine_store.own_region import OnChange, OwnRegion
from pbkv_cluster.integrations.engine_store.settings import StoreSettings
from pbkv_cluster.integrations.engine_store.siblings import Siblings
from pbkv_cluster.rpc.v1 import store_pb2
from pbkv_cluster.store.arena.region_lock import unlock
from pbkv_cluster.store.arena.slots import SlotReader
from pbkv_cluster.store.cluster_index import Directory, NodeEntry, connect
from pbkv_cluster.store.region_lease import lease_region, map_region

log = logging.getLogger(__name__)

_RENEW_S = 5.0
_RETRY_S = 0.5  # before there is a region
_STOP_S = 5.0  # that the end of the engine waits for this thread
_MAX_ENGINES = 64  # of one kind and rank on a node


class NodeLink:
    """Where the blocks of an engine are at the moment: `region`, `siblings`, `other_nodes`; None: there is none yet."""

    def __init__(
        self, settings: StoreSettings, kind: Namespace, rank: str, block_bytes: int, region_bytes: int, on_change: OnChange
    ) -> None:
        """Args:
        settings: where the store is.
        kind: what the blocks of all engines that share them have in common.
        rank: of this engine's process.
        block_bytes: of each block.
        region_bytes: to take; 0: no region, only to read.
        on_change: called with each block that comes to the region or leaves it, on any thread.
        """
        self.block_bytes = block_bytes
        self.region: OwnRegion | None = None
        self.siblings: Siblings | None = None
        self.other_nodes: OtherNodes | None = None
        self.owner = ""
        self._settings = settings
        self._kind, self._model = kind, kind.digest()
        # The index needs names that no other node has; a restarted engine must have the one that it had.
        place = f"{socket.gethostname()}/{settings.endpoint or settings.name}"
        self._base = f"engine:{self._model.hex()[:16]}:{rank}@{place}"
        self._region_bytes = region_bytes
        self._on_change = on_change
        self._problem = "the node's store has not been found yet"
        self._leased: tuple[int, store_pb2.LeaseArenaResponse] | None = None  # with the open file that holds its lock
        self._attached = threading.Event()
        self._following: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None
        self._thread = threading.Thread(target=self._run, name="pbkv-node-link", daemon=True)

    @property
    def problem(self) -> str:
        """Why nothing, or not all, can be stored or read; empty: all is well."""
        return self._problem or (self.region.problem if self.region is not None else "")

    def finds_near(self, key: bytes) -> bool:
        """Whether a block is on this node, as far as is known."""
        region, siblings = self.region, self.siblings
        return (region is not None and key in region) or (siblings is not None and siblings.find(key))

    def finds(self, key: bytes) -> bool:
        """Whether a block can be read from anywhere, as far as is known."""
        return self.finds_near(key) or ((others := self.other_nodes) is not None and others.find(key))

    def start(self) -> None:
        """Starts the thread, and waits until there is a region, or for the time that the settings allow."""
        self._thread.start()
        if not self._attached.wait(self._settings.start_timeout_s):
            log.warning("the engine starts without the store: %s", self._problem)

    def stop(self) -> None:
        """Gives the region back to its next process, and ends the thread, also while it waits for an answer."""
        if self._following is not None and self._thread.is_alive():
            loop, task = self._following
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(task.cancel)
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._follow())

    async def _follow(self) -> None:
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task is not None
        self._following = asyncio.get_running_loop(), task
        try:
            while True:
                try:
                    await self._attach()
                    await self._join_cluster()
                    self._problem = ""
                except PbkvError as error:
                    if self._problem != str(error):
                        self._problem = str(error)
                        log.warning("%s", self._problem)
                if self.siblings is not None:
                    self._attached.set()
                await asyncio.sleep(_RENEW_S if self._attached.is_set() else _RETRY_S)
        except Exception:
            log.exception("the link to the node's store has failed; the engine goes on without it")
            self._problem = "the link to the node's store has failed"
        finally:
            await self._leave()

    async def _attach(self) -> None:
        address = await self._address()
        if self.siblings is not None:
            leased = await lease_region(address, self.owner, 0)
            try:
                inode = os.stat(leased.path).st_ino
            except OSError as error:  # the host store has ended since it answered
                raise Unavailable(f"the node's arena is gone: {error}") from error
            if inode == self.siblings.inode:
                return
            log.warning("the node has another arena: this engine's blocks are lost")
            await self._leave()
        try:
            if self._region_bytes:
                leased = await self._take_region(address)
            else:
                self.owner = f"{self._base}:reader-{uuid.uuid4().hex[:8]}"
                leased = await lease_region(address, self.owner, 0)
            # The path is valid while the host store runs; the file that this opens stays.
            self.siblings = Siblings(Path(leased.path), self._is_same_kind, besides=self.owner)
        except PbkvError:
            await self._leave()  # the next attempt must not find the region in use by this one
            raise
        self._host_store = address

    async def _take_region(self, address: str) -> store_pb2.LeaseArenaResponse:
        """The first region of this kind and rank that no living process has: after a restart, the one that it had before."""
        for number in range(_MAX_ENGINES):
            owner = f"{self._base}:{number}"
            leased = await lease_region(address, owner, self._region_bytes, may_be_less=True)
            if not leased.bytes:
                raise ResourceExhausted("the node's arena has no memory left")
            try:
                file, memory = map_region(leased, owner)
            except Unavailable as error:
                log.debug("region %s is in use: %s", owner, error)
                continue
            self._leased = file, leased
            self.owner = owner
            self.region = OwnRegion(memory, self.block_bytes, self._model, self._changed)
            log.info(
                "region %s: %d blocks of %d bytes, of which %d were found",
                owner,
                self.region.layout.slots,
                self.block_bytes,
                self.region.found,
            )
            return leased
        raise ResourceExhausted(f"{_MAX_ENGINES} engines of this kind use the node's arena")

    async def _address(self) -> str:
        """Of the node's host store: the one that is given, one by name, that of `pbkv serve`, or a new one."""
        settings = self._settings
        if settings.endpoint:
            return settings.endpoint
        address = launcher.running_address(settings.name)
        if address is None and settings.redis_url:
            with contextlib.suppress(Unavailable):
                nodes = await self._nodes()
                ours = (node for node in nodes if not node.node_id.startswith(NODE_PREFIX) and _is_local(node.host))
                address = next((node.address for node in ours), None)
        return address or await launcher.find_or_start(settings)

    async def _join_cluster(self) -> None:
        if self.other_nodes is not None or not self._settings.redis_url or self.siblings is None:
            return
        node = next((node for node in await self._nodes() if node.address == self._host_store), None)
        if node is None:
            raise Unavailable(f"the host store at {self._host_store} is not announced in cluster {self._settings.cluster!r}")
        other_nodes = OtherNodes(self._settings.redis_url, self._settings.cluster, self._kind, node.node_id)
        other_nodes.start()
        self.other_nodes = other_nodes
        if self.region is not None:
            await other_nodes.publish(self.owner, self._host_store, self.region.residencies, self.block_bytes)

    async def _nodes(self) -> list[NodeEntry]:
        redis = connect(self._settings.redis_url, self._settings.cluster)
        try:
            return await Directory(redis, self._settings.cluster, LEASE_S).nodes()
        finally:
            await redis.aclose()

    async def _leave(self) -> None:
        other_nodes, self.other_nodes = self.other_nodes, None
        region, self.region = self.region, None
        siblings, self.siblings = self.siblings, None
        try:
            if other_nodes is not None:
                await other_nodes.stop()
        finally:  # also if the thread is told to end just now
            if region is not None:
                region.close()
            if siblings is not None:
                siblings.close()
            if self._leased is not None:
                file, leased = self._leased
                self._leased = None
                unlock(file, leased.offset, leased.bytes)  # explicitly: the mapping keeps a duplicate of the file open
                os.close(file)

    def _changed(self, label: BlockLabel, residency: Residency) -> None:
        self._on_change(label, residency)
        if self.other_nodes is not None:
            self.other_nodes.record(label, residency)

    def _is_same_kind(self, reader: SlotReader) -> bool:
        return reader.layout.payload_bytes == self.block_bytes and reader.model == self._model


def _is_local(host: str) -> bool:
    """Whether an address is one of this machine's."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True
