"""Members of one node and of two, with a real Redis: what one worker announces, another fetches."""

import asyncio
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest

from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.members import HostStoreMember, WorkerMember
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import store_pb2_grpc, worker_pb2_grpc
from pbkv_cluster.store.cluster_index import Directory, RedisServer
from pbkv_cluster.store.cluster_index import connect as connect_redis
from pbkv_cluster.store.cluster_index.redis_server import free_port
from pbkv_cluster.store.kv_events.engine_blocks import EngineBlocks
from pbkv_cluster.store.kv_events.event_subscriber import KvEventSubscriber
from tests.gpu_worker.conftest import SMALL
from tests.gpu_worker.worker_rig import Answer, Rig, config, step
from tests.polling import eventually

PROMPT = list(range(10, 300))


@pytest.mark.parametrize(
    ("nodes", "tier"), [(("node-0", "node-0"), Tier.SIBLING), (("node-0", "node-1"), Tier.REMOTE)], ids=["sibling", "node"]
)
async def test_a_worker_fetches_what_another_has_announced(nodes: tuple[str, str], tier: Tier, tmp_path: Path) -> None:
    build(tmp_path, "llama", **SMALL)
    settings = config(
        tmp_path,
        engine={"gpu_blocks": 64, "host_blocks": 64},
        cache={"policy": "lru", "write_through": True},
        host_store={"memory_bytes": 64 << 20},
    )
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer.resolve(""))
        contexts = {node: MemberContext(settings, server.url, "127.0.0.1", node) for node in nodes}
        for context in contexts.values():
            store = HostStoreMember(context, workers=2)
            stack.push_async_callback(store.stop)
            await store.start()
        rigs = []
        for name, node in zip(("one", "two"), nodes, strict=True):
            worker = WorkerMember(contexts[node], name)
            stack.push_async_callback(worker.stop)
            channel = await stack.enter_async_context(connect(await worker.start()))
            stubs = worker_pb2_grpc.WorkerServiceStub(channel), store_pb2_grpc.StoreServiceStub(channel)
            rigs.append(Rig(None, None, channel, *stubs))  # type: ignore[arg-type]
        one, two = rigs
        first = await one.run(step(PROMPT))
        answers: list[Answer] = []

        async def fetched() -> bool:
            """The second computes until it has been told what the first has."""
            answers.append(await two.run(step(PROMPT)))
            if answers[-1].usage.delivered.get(tier):
                return True
            await two.clear()
            return False

        await eventually(fetched, 60.0)
        assert all(answer.tokens == first.tokens for answer in answers)
        assert (await two.decisions())["fetch"] >= len(PROMPT) // 16
        redis = connect_redis(server.url)
        stack.push_async_callback(redis.aclose)
        entries = await Directory(redis, settings.cluster.name, ttl_s=60.0).workers()
        assert [(entry.reads_siblings, entry.reads_peers) for entry in entries] == [(True, True)] * 2, "gateways count on it"


async def test_a_worker_publishes_what_its_cache_holds(tmp_path: Path) -> None:
    build(tmp_path, "llama", **SMALL)
    endpoint, replay = (f"tcp://127.0.0.1:{free_port('127.0.0.1')}" for _ in range(2))
    settings = config(tmp_path, kv_events={"endpoint": endpoint, "replay_endpoint": replay})
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer.resolve(""))
        worker = WorkerMember(MemberContext(settings, server.url, "127.0.0.1", "node-0"), "worker-0")
        stack.push_async_callback(worker.stop)
        channel = await stack.enter_async_context(connect(await worker.start()))
        stubs = worker_pb2_grpc.WorkerServiceStub(channel), store_pb2_grpc.StoreServiceStub(channel)
        rig = Rig(None, None, channel, *stubs)  # type: ignore[arg-type]
        blocks = EngineBlocks(1 << 20)
        subscriber = KvEventSubscriber(endpoint, blocks, SystemClock(), replay_endpoint=replay)
        task = asyncio.create_task(subscriber.run())
        stack.callback(task.cancel)
        prompts = count(start=1)

        async def told() -> bool:
            await rig.run(step([next(prompts)] * 40))
            used = (await rig.stat(Tier.GPU)).used_blocks
            return subscriber.is_exact and blocks.is_complete and len(blocks) == used > 0

        await eventually(told, 60.0)
        assert blocks.match(pack([next(prompts) - 1] * 40)).gpu_tokens == 32
        await rig.clear()
        await eventually(lambda: len(blocks) == 0)
