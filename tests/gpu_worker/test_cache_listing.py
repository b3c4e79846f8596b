"""What operators ask of a real worker's cache."""

from pathlib import Path

import pytest
from grpc import StatusCode, aio

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.convert import tiers_from_wire
from pbkv_cluster.rpc.services import HOST_STORE, FixedServices
from pbkv_cluster.rpc.v1 import store_pb2
from pbkv_cluster.store.arena.layout import RegionLayout
from tests.gpu_worker.worker_rig import PATIENCE_S, Rig, config, flip, host_store, serving, step, stored

POOLS = {"gpu_blocks": 16, "host_blocks": 32}


def prompt(seed: int) -> list[int]:
    return [(seed * 131 + n * 17) % 4000 + 50 for n in range(80)]


async def listed(rig: Rig, **fields: object) -> list[store_pb2.CachedBlocks]:
    request = store_pb2.ListCacheRequest(**fields)  # type: ignore[arg-type]
    return list((await rig.store.ListCache(request, timeout=PATIENCE_S)).entries)


async def test_what_steps_have_used_is_listed_and_found_sound(llama: Path) -> None:
    async with serving(config(llama, engine=POOLS), worker_id="worker-7") as rig:
        for seed, agent in enumerate(("planner", "coder", "tester", "planner")):
            await rig.run(step(prompt(seed), agent_id=agent, step=seed))
        runs = await listed(rig)
        assert all(run.worker_id == "worker-7" and len(bytes.fromhex(run.name)) == 16 for run in runs)
        gpu, host = await rig.stat(Tier.GPU), await rig.stat(Tier.HOST)
        tokens = [tiers_from_wire(run.tiers) for run in runs]
        assert sum(each.get(Tier.GPU, 0) for each in tokens) == 16 * gpu.used_blocks > 0
        assert sum(each.get(Tier.HOST, 0) for each in tokens) == 16 * host.used_blocks > 0
        assert {entry.name for entry in await listed(rig, by=store_pb2.CACHE_GROUPING_AGENT)} == {"planner", "coder", "tester"}
        assert [entry.name for entry in await listed(rig, by=store_pb2.CACHE_GROUPING_WORKFLOW)] == ["w"]
        assert len(await listed(rig, limit=1)) == 1
        await rig.run(step(prompt(3), workflow_id="other"))
        found = await rig.store.ListCache(store_pb2.ListCacheRequest(limit=1), timeout=PATIENCE_S)
        assert tiers_from_wire(found.shared)[Tier.GPU] == 80
        assert {name for run in await listed(rig, agent_id="coder") for name in run.agents} == {"coder"}

        checked = await rig.store.CheckCache(store_pb2.CheckCacheRequest(), timeout=PATIENCE_S)
        assert (checked.checked_blocks, checked.damaged_blocks) == (host.used_blocks, 0)


async def test_a_damaged_block_is_named(llama: Path) -> None:
    async with host_store(16 << 20) as (arena, address):
        settings = config(llama, engine=POOLS, cache={"write_through": True})
        async with serving(settings, host_store=FixedServices({HOST_STORE: address})) as rig:
            await rig.run(step(prompt(1)))
            await stored(arena, 5)
            flip(arena, RegionLayout(POOLS["host_blocks"], rig.facts.block_bytes))
            checked = await rig.store.CheckCache(store_pb2.CheckCacheRequest(), timeout=PATIENCE_S)
            assert checked.checked_blocks == checked.damaged_blocks == 5
            keys = await rig.worker.residency()
            assert {bytes.fromhex(key) for key in checked.damaged} <= set(keys)


async def test_a_bad_request_is_refused_by_name(llama: Path) -> None:
    refused: list[tuple[dict[str, object], str]] = [
        ({"by": 9}, "by: unknown: 9"),
        ({"order": 9}, "order: unknown: 9"),
        ({"limit": -1}, "limit: must be from 0 to 1000, got -1"),
        ({"limit": 1001}, "limit: must be from 0 to 1000, got 1001"),
        ({"workflow_id": "w" * 257}, "workflow_id: at most 256 bytes"),
        ({"agent_id": "a" * 257}, "agent_id: at most 256 bytes"),
    ]
    async with serving(config(llama)) as rig:
        for fields, problem in refused:
            with pytest.raises(aio.AioRpcError, match=problem) as error:
                await listed(rig, **fields)
            assert error.value.code() is StatusCode.INVALID_ARGUMENT
        checked = await rig.store.CheckCache(store_pb2.CheckCacheRequest(), timeout=PATIENCE_S)
        assert checked == store_pb2.CheckCacheResponse()  # there is no host tier
