"""A host store of its own for a node where `pbkv serve` does not run: an arena for the engines of one user.

    python -m pbkv_cluster.integrations.engine_store.node_store.process --name engines --arena-bytes 17179869184

An engine starts it if none of that name runs. It ends when no engine has had a region for `--keep-s` seconds. One that is
started again while engines run finds the arena where they hold it open.
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack

from pbkv_cluster.cluster.membership.announcer import Announcer
from pbkv_cluster.core.background import wait_for
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.integrations.engine_store.node_store.files import StoreFiles
from pbkv_cluster.integrations.engine_store.other_nodes import LEASE_S, NODE_PREFIX
from pbkv_cluster.integrations.engine_store.settings import FILES, KEY_VARIABLE, REDIS_VARIABLE, StoreSettings
from pbkv_cluster.rpc.security import set_up_security, this_process
from pbkv_cluster.store.arena.arena import Arena
from pbkv_cluster.store.arena.machine import total_memory
from pbkv_cluster.store.cluster_index import Directory, NodeEntry, connect
from pbkv_cluster.store.peers.handshake import new_token
from pbkv_cluster.store.peers.tcp import TcpTransport
from pbkv_cluster.store.server import HostStore

log = logging.getLogger(__name__)

_ARENA_SHARE = 0.5  # of the machine's memory


async def serve(settings: StoreSettings, stopped: asyncio.Event) -> None:
    """Serves until `stopped` is set, or until no engine has had a region for long enough.

    Raises:
        StartupError: the arena cannot be made.
    """
    files = StoreFiles(settings.name)
    lock = files.take()
    if lock is None:
        log.info("a store %r runs already", settings.name)
        return
    capacity = settings.arena_bytes or int(total_memory() * _ARENA_SHARE)
    async with AsyncExitStack() as stack:
        stack.callback(os.close, lock)
        arena = Arena(f"pbkv-store:{settings.name}:{os.getuid()}", capacity, settings.keep_s, SystemClock())
        token = new_token()
        peers = TcpTransport().serve(arena.path, token, this_process().for_members()) if settings.redis_url else None
        store = HostStore(arena, _no_workers, peers)
        stack.push_async_callback(store.stop)
        address = await store.start("127.0.0.1") if peers is None else await store.start(settings.host)
        if peers is not None:
            redis = connect(settings.redis_url, settings.cluster)
            stack.push_async_callback(redis.aclose)
            directory = Directory(redis, settings.cluster, LEASE_S)
            node_id = f"{NODE_PREFIX}{socket.gethostname()}:{settings.name}"
            entry = NodeEntry(node_id, settings.host, address, arena.capacity, store.peer_address, token.hex())
            announcer = Announcer(
                lambda: directory.announce_node(entry),
                lambda: directory.withdraw_node(node_id),
                directory.renewal_interval_s,
            )
            await announcer.start()
            stack.push_async_callback(announcer.stop)
        files.write_address(address)
        log.info("store %r serves %d bytes at %s", settings.name, arena.capacity, address)
        last_used = time.monotonic()
        while not await wait_for(stopped, min(5.0, settings.keep_s / 4)):
            if await store.regions():
                last_used = time.monotonic()
            elif time.monotonic() - last_used > settings.keep_s:
                log.info("store %r ends: no engine uses it", settings.name)
                return


async def _no_workers() -> Mapping[str, str]:
    return {}


async def _serve_until_signal(settings: StoreSettings) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await serve(settings, stopped)


def _secured(settings: StoreSettings) -> StoreSettings:
    set_up_security(settings.security, settings.api_key)
    return settings


def main() -> None:
    """The command line."""
    defaults = StoreSettings()
    parser = argparse.ArgumentParser(
        description=f"A host store for the engines of this node; its Redis is ${REDIS_VARIABLE}, their key ${KEY_VARIABLE}."
    )
    parser.add_argument("--name", default=defaults.name, help="engines that name the same one share it")
    parser.add_argument("--arena-bytes", type=int, default=0, help="for all engines; 0: half of the memory")
    parser.add_argument("--keep-s", type=float, default=defaults.keep_s, help="seconds that blocks of an ended engine are kept")
    parser.add_argument("--host", default=defaults.host, help="address to serve at; other nodes read blocks there")
    for name in FILES:
        what = StoreSettings.model_fields[name].description
        parser.add_argument(f"--{name.replace('_', '-')}", default=getattr(defaults, name), help=what)
    parser.add_argument("--cluster", default=defaults.cluster, help="name of the cluster in Redis")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_serve_until_signal(_secured(StoreSettings.of(vars(parser.parse_args())))))
    except PbkvError as error:
        raise SystemExit(f"pbkv store: {error}") from None


if __name__ == "__main__":
    main()
