"""Workers of two nodes, each with a host store and an arena of its own: what one misses, it reads from the other."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.core.config import Config
from pbkv_cluster.core.locations.residency import SHARED
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.prefill_rate import PrefillRate
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.block_map import BlockMap
from pbkv_cluster.store.peers.source import PeerSource
from pbkv_cluster.store.peers.tcp import TcpTransport
from pbkv_cluster.store.peers.transport import PeerAddress
from tests.gpu_worker.test_restored_worker import ARENA, POOLS, At
from tests.gpu_worker.worker_rig import Rig, config, host_store, serving, step

PROMPT = list(range(10, 80))  # four full blocks and some tokens
TOKEN = bytes(range(32))

SERVE = """
import sys
from pathlib import Path
from pbkv_cluster.store.peers.server import PeerServer
server = PeerServer(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))
print(server.start("127.0.0.1"), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _slow_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every fetch pays."""
    monkeypatch.setattr(PrefillRate, "seconds", lambda self, tokens: tokens * 100.0)


def settings(model: Path, **engine: Any) -> Config:
    return config(model, engine={**POOLS, **engine}, cache={"write_through": True, "policy": "lru"})


class Nodes:
    """A worker on each of two nodes, a server of the first one's blocks in a process of its own, and what the second knows."""

    def __init__(self, path: Path, first: Rig, second: Rig, blocks: BlockMap, server: asyncio.subprocess.Process) -> None:
        self.path = path
        self.first, self.second = first, second
        self.blocks = blocks
        self.server = server

    async def tell(self) -> None:
        """The second learns what the first holds."""
        self.blocks.replace(("first", "1"), "one", await self.first.held())

    def flip(self) -> None:
        """Damages every payload of the first."""
        layout = RegionLayout(POOLS["host_blocks"], self.first.facts.block_bytes)
        with self.path.open("r+b") as file:
            start = file.seek(0, 2) - ARENA
            for slot in range(layout.slots):
                file.seek(start + layout.payloads + slot * layout.payload_bytes + 100)
                (byte,) = file.read(1)
                file.seek(-1, 1)
                file.write(bytes([byte ^ 1]))


@asynccontextmanager
async def nodes(config: Config) -> AsyncIterator[Nodes]:
    blocks = BlockMap(SHARED)
    async with AsyncExitStack() as stack:
        (one, one_at), (_, two_at) = [await stack.enter_async_context(host_store(ARENA)) for _ in range(2)]
        first = await stack.enter_async_context(serving(config, "first", host_store=At(one_at)))
        arguments = [sys.executable, "-c", SERVE, str(one.path), TOKEN.hex()]
        server = await asyncio.create_subprocess_exec(*arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        assert server.stdout is not None
        peer = PeerAddress((await server.stdout.readline()).decode().strip(), TOKEN)
        source = PeerSource({"one": peer}.get, TcpTransport())
        second = await stack.enter_async_context(
            serving(config, "second", host_store=At(two_at), blocks=blocks, node_id="two", peers=source)
        )
        stack.callback(source.close)
        try:
            yield Nodes(one.path, first, second, blocks, server)
        finally:
            if server.returncode is None:
                server.kill()
            await server.wait()


async def test_what_one_node_has_computed_another_reads_from_its_arena(llama: Path) -> None:
    async with nodes(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        second = await both.second.run(step(PROMPT))
        assert second.usage.delivered == {Tier.REMOTE: 64}
        assert second.tokens == first.tokens
        again = await both.second.run(step(PROMPT))
        assert again.usage.delivered == {Tier.GPU: 64}, "they are in its own cache now"
        assert second.speeds is not None
        assert second.speeds.prefill_token_s == 100.0
        assert second.speeds.loads[Tier.REMOTE].token_s > 0.0
        assert {Tier.SIBLING, Tier.DISK, Tier.GPU}.isdisjoint(second.speeds.loads), "nothing was loaded from there"
        assert again.tokens == first.tokens


async def test_a_node_whose_bytes_are_wrong_is_a_miss_and_counted(llama: Path) -> None:
    async with nodes(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        both.flip()
        second = await both.second.run(step(PROMPT))
        assert (second.tokens, second.usage.delivered) == (first.tokens, {})
        decisions = await both.second.decisions()
        assert (decisions["remote_damaged"], decisions["fetch_failed"]) == (4, 4)


async def test_a_node_that_is_killed_is_computed_for_and_left_alone(llama: Path) -> None:
    async with nodes(settings(llama)) as both:
        first = await both.first.run(step(PROMPT))
        await both.tell()
        both.server.kill()
        await both.server.wait()
        second = await both.second.run(step(PROMPT))
        assert (second.tokens, second.usage.delivered) == (first.tokens, {})
        assert (await both.second.decisions())["remote_unavailable"] == 4


async def test_other_nodes_are_not_read_where_that_is_switched_off(llama: Path) -> None:
    async with nodes(settings(llama, read_peers=False)) as both:
        assert not both.second.facts.reads_peers
        first = await both.first.run(step(PROMPT))
        await both.tell()
        second = await both.second.run(step(PROMPT))
        assert (second.tokens, second.usage.delivered) == (first.tokens, {})
