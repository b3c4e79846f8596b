"""The entries of all members and nodes in the directory, as the process that started the cluster sees them."""

import asyncio
import logging
import threading
from collections.abc import Iterable, Sequence

from pbkv_cluster.cluster.membership.blocking_directory import BlockingDirectory
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory, MemberEntry, NodeStateEntry

log = logging.getLogger(__name__)

_RENEWALS_PER_TTL = 3

_Entry = MemberEntry | NodeStateEntry


class MemberBoard:
    """Announces entries from a thread of its own: who restarts members must not wait for Redis."""

    def __init__(self, redis_url: str, cluster: str, ttl_s: float) -> None:
        """Args:
        redis_url: of the directory.
        cluster: name of the cluster.
        ttl_s: seconds after which an entry is gone if this process no longer renews it.
        """
        self._directory = BlockingDirectory(redis_url, cluster, ttl_s)  # used by the thread alone
        self._ttl_s = ttl_s
        self._members: dict[str, _Entry] = {}
        self._nodes: dict[str, _Entry] = {}
        self._announced: dict[str, _Entry] = {}  # used by the thread alone
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="member-board", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def show(self, entries: Sequence[MemberEntry]) -> None:
        """Announces these members from now on, and no others; returns at once."""
        self._members = {f"member {entry.name}": entry for entry in entries}
        self._wake.set()

    def show_nodes(self, entries: Sequence[NodeStateEntry]) -> None:
        """Announces these nodes from now on, and no others; returns at once."""
        nodes: dict[str, _Entry] = {f"node {entry.node_id}": entry for entry in entries}
        if nodes != self._nodes:
            self._nodes = nodes
            self._wake.set()

    def stop(self) -> None:
        """Withdraws the entries. May be called again."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._ttl_s / _RENEWALS_PER_TTL)
            self._wake.clear()
            present = self._members | self._nodes
            gone = [entry for name, entry in self._announced.items() if name not in present]
            self._tell(present.values(), gone)
            self._announced = present
        self._tell((), self._announced.values())
        self._directory.close()

    def _tell(self, present: Iterable[_Entry], gone: Iterable[_Entry]) -> None:
        async def tell(directory: Directory) -> None:
            await asyncio.gather(
                *(_announce(directory, each) for each in present), *(_withdraw(directory, each) for each in gone)
            )

        try:
            self._directory.call(tell)
        except Unavailable as error:
            log.info("the directory does not answer: %s", error)


async def _announce(directory: Directory, entry: _Entry) -> None:
    if isinstance(entry, MemberEntry):
        await directory.announce_member(entry)
    else:
        await directory.announce_node_state(entry)


async def _withdraw(directory: Directory, entry: _Entry) -> None:
    if isinstance(entry, MemberEntry):
        await directory.withdraw_member(entry)
    else:
        await directory.withdraw_node_state(entry)
