"""Why a real worker's blocks lie where they do, and what the cluster index should say of them."""

from pathlib import Path

import pytest
from grpc import StatusCode, aio

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.locations.residency import Residency, unpack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.v1 import store_pb2, types_pb2, worker_pb2
from tests.gpu_worker.worker_rig import PATIENCE_S, Rig, config, serving, step

POOLS = {"gpu_blocks": 16, "host_blocks": 32}


def prompt(seed: int, length: int = 80) -> list[int]:
    return [(seed * 131 + n * 17) % 4000 + 50 for n in range(length)]


async def explained(rig: Rig, **fields: object) -> store_pb2.ExplainCacheResponse:
    request = store_pb2.ExplainCacheRequest(**fields)  # type: ignore[arg-type]
    return await rig.store.ExplainCache(request, timeout=PATIENCE_S)


async def blocks_of(rig: Rig) -> dict[bytes, Residency]:
    found: dict[bytes, Residency] = {}
    async for page in rig.stub.ListBlocks(worker_pb2.ListBlocksRequest(), timeout=PATIENCE_S):
        keys = [page.keys[at : at + KEY_BYTES] for at in range(0, len(page.keys), KEY_BYTES)]
        found |= zip(keys, map(unpack, page.residencies), strict=True)
    return found


async def test_a_block_tells_where_it_lies_who_has_used_it_and_what_was_decided(llama: Path) -> None:
    async with serving(config(llama, engine=POOLS), worker_id="worker-7") as rig:
        for seed, agent in enumerate(("planner", "coder", "tester", "planner")):
            await rig.run(step(prompt(seed), agent_id=agent, step=seed))
        request = store_pb2.ListCacheRequest(last_decisions=True, limit=100)
        runs = (await rig.store.ListCache(request, timeout=PATIENCE_S)).entries
        assert {run.last_decision.reason for run in runs} == {"compute", "demote"}
        demoted = next(run for run in runs if run.last_decision.reason == "demote")
        found = await explained(rig, block=demoted.name[:16])
        assert list(found.keys) == [demoted.name]
        assert [each.reason for each in found.decisions] == ["demote", "evict_active", "compute"]
        assert all(each.worker_id == "worker-7" and list(each.workflows) == ["w"] for each in found.decisions)
        assert found.decisions[1].HasField("value")
        (block,) = found.blocks
        assert (block.worker_id, block.policy, list(block.run.workflows)) == ("worker-7", "pbkv", ["w"])
        (place,) = block.places
        assert (place.tier, place.standing) == (types_pb2.TIER_HOST, "candidate")
        assert 0 <= place.ahead < place.candidates
        upper = await explained(rig, block=demoted.name.upper(), limit=1)
        assert [each.reason for each in upper.decisions] == ["demote"]

        about_workflow = await explained(rig, workflow_id="w", limit=1000)
        assert {each.reason for each in about_workflow.decisions} == {"compute", "evict_active", "demote"}
        assert not (await explained(rig, workflow_id="other")).decisions

        await rig.store.Clear(store_pb2.ClearRequest(), timeout=PATIENCE_S)
        gone = await explained(rig, block=demoted.name)
        assert (list(gone.blocks), gone.decisions[0].reason) == ([], "clear")


async def test_an_ambiguous_or_unknown_key_is_no_error_of_the_worker(llama: Path) -> None:
    async with serving(config(llama, engine=POOLS)) as rig:
        assert await explained(rig, block="00" * 16) == store_pb2.ExplainCacheResponse()
        for seed in range(20):
            await rig.run(step(prompt(seed), step=seed))
        keys = [key.hex() for key in await blocks_of(rig)]
        digit = next(each for each in "0123456789abcdef" if sum(key.startswith(each) for key in keys) > 1)
        several = await explained(rig, block=digit)
        assert len(several.keys) > 1
        assert all(key.startswith(digit) for key in several.keys)
        assert not several.blocks
        for text in ("", "xyz", "0" * 33):
            with pytest.raises(aio.AioRpcError, match="block: must be a block key in hex, or its beginning") as error:
                await explained(rig, block=text)
            assert error.value.code() is StatusCode.INVALID_ARGUMENT


async def test_without_a_log_nothing_is_told_of_decisions(llama: Path) -> None:
    async with serving(config(llama, engine=POOLS, cache={"decision_log_bytes": 0})) as rig:
        await rig.run(step(prompt(1)))
        found = await explained(rig, block=next(iter(await blocks_of(rig))).hex())
        assert (len(found.blocks), list(found.decisions)) == (1, [])


async def test_blocks_are_listed_as_the_index_should_have_them_and_slots_tell_what_they_hold(llama: Path) -> None:
    async with serving(config(llama, engine=POOLS, cache={"write_through": True})) as rig:
        await rig.run(step(prompt(1)))
        await rig.held()
        blocks = await blocks_of(rig)
        assert blocks == await rig.worker.residency()
        keys = sorted(key for key, residency in blocks.items() if Tier.HOST in residency.tiers)
        assert len(keys) == 5

        async def unbacked(*slots: int) -> list[bytes]:
            residencies = [Residency(frozenset({Tier.HOST}), slot).pack() for slot in slots]
            page = worker_pb2.BlockPage(keys=b"".join(keys), residencies=residencies)
            found = await rig.stub.FindUnbacked(page, timeout=PATIENCE_S)
            return [found.keys[at : at + KEY_BYTES] for at in range(0, len(found.keys), KEY_BYTES)]

        right = [blocks[key].slot for key in keys]
        assert await unbacked(*right) == []
        assert await unbacked(*right[:3], right[4], right[3]) == keys[3:]
        assert await unbacked(POOLS["host_blocks"], *right[1:]) == keys[:1]
        assert await unbacked(-1, *right[1:]) == [], "it is on its way there"
        with pytest.raises(aio.AioRpcError, match="keys: must be 16 bytes"):
            await rig.stub.FindUnbacked(worker_pb2.BlockPage(keys=b"abc", residencies=[1]), timeout=PATIENCE_S)


async def test_what_a_workflow_has_used_is_prefetched(llama: Path) -> None:
    async with serving(config(llama, engine=POOLS, cache={"policy": "lru"})) as rig:
        await rig.run(step(prompt(1), workflow_id="mine"))
        for seed in range(2, 5):
            await rig.run(step(prompt(seed), workflow_id="other", step=seed))
        request = store_pb2.PrefetchRequest(workflow_id="mine")
        first = await rig.store.Prefetch(request, timeout=PATIENCE_S)
        assert first.loaded_tokens == first.resident_tokens < 80  # what is not free has blocks of an active workflow
        retire = worker_pb2.RetireWorkflowRequest(workflow_id="other")
        await rig.stub.RetireWorkflow(retire, timeout=PATIENCE_S)
        done = await rig.store.Prefetch(request, timeout=PATIENCE_S)
        assert (first.loaded_tokens + done.loaded_tokens, done.resident_tokens) == (80, 80)
        again = await rig.store.Prefetch(request, timeout=PATIENCE_S)
        assert (again.loaded_tokens, again.resident_tokens) == (0, 80)
        unknown = store_pb2.PrefetchRequest(workflow_id="unknown")
        assert await rig.store.Prefetch(unknown, timeout=PATIENCE_S) == store_pb2.PrefetchResponse()
