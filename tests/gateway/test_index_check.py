"""The cluster index against what workers hold: differences that last are told from changes on their way."""

import asyncio
from typing import Any

import pytest
from grpc import StatusCode, aio

from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import inspection_pb2, inspection_pb2_grpc, store_pb2, store_pb2_grpc, types_pb2
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import PATIENCE_S, Rig, running

KEYS = [bytes([number]) * 16 for number in range(1, 6)]
ON_GPU = Residency(frozenset({Tier.GPU})).pack()
IN_SLOT_3 = Residency(frozenset({Tier.HOST}), 3).pack()


async def check(rig: Rig) -> inspection_pb2.CheckIndexResponse:
    async with connect(rig.address) as channel:
        stub = inspection_pb2_grpc.InspectionServiceStub(channel)
        return await stub.CheckIndex(inspection_pb2.CheckIndexRequest(), timeout=PATIENCE_S)


async def test_an_index_that_is_right_has_no_differences() -> None:
    blocks = {KEYS[0]: ON_GPU, KEYS[1]: IN_SLOT_3}
    async with running(ScriptedWorker("w1", blocks=blocks), ScriptedWorker("w2")) as rig:
        await rig.index.announce("w1", "1", blocks)
        found = await check(rig)
        assert found == inspection_pb2.CheckIndexResponse(indexed_blocks=2, held_blocks=2)


async def test_each_kind_of_lasting_difference_is_named() -> None:
    held = {KEYS[0]: ON_GPU, KEYS[1]: IN_SLOT_3, KEYS[2]: IN_SLOT_3}
    async with running(ScriptedWorker("w1", blocks=held, unbacked={KEYS[3]})) as rig:
        await rig.index.announce("w1", "1", {KEYS[1]: ON_GPU, KEYS[2]: IN_SLOT_3, KEYS[3]: IN_SLOT_3})
        found = await check(rig)
        assert {(each.worker_id, each.key, each.problem) for each in found.differences} == {
            ("w1", KEYS[0].hex(), "missing"),
            ("w1", KEYS[1].hex(), "misplaced"),
            ("w1", KEYS[3].hex(), "unbacked"),
        }
        assert (found.missing_blocks, found.misplaced_blocks, found.unbacked_blocks, found.changing_blocks) == (1, 1, 1, 0)
        assert (found.indexed_blocks, found.held_blocks) == (3, 3)


async def test_what_is_mended_between_the_looks_is_a_change_and_no_fault() -> None:
    async with running(ScriptedWorker("w1", unbacked={KEYS[0]}, mends=True)) as rig:
        await rig.index.announce("w1", "1", {KEYS[0]: IN_SLOT_3})
        found = await check(rig)
        assert (found.unbacked_blocks, found.changing_blocks, list(found.differences)) == (0, 1, [])


async def test_a_worker_that_does_not_answer_is_named() -> None:
    async with running() as rig:
        await rig.add_worker(ScriptedWorker("w9"), address="127.0.0.1:1")
        await rig.gateway.pool.refresh()
        with pytest.raises(aio.AioRpcError, match="w9 cannot be asked") as error:
            await check(rig)
        assert error.value.code() is StatusCode.UNAVAILABLE


async def prefetch(rig: Rig, request: store_pb2.PrefetchRequest) -> store_pb2.PrefetchResponse:
    async with connect(rig.address) as channel:
        return await store_pb2_grpc.StoreServiceStub(channel).Prefetch(request, timeout=PATIENCE_S)


async def test_a_prefetch_that_cannot_be_understood_is_refused_by_name() -> None:
    text = types_pb2.Prompt(text="a")
    refused = [
        (store_pb2.PrefetchRequest(), StatusCode.INVALID_ARGUMENT, "prompt: a prompt or a workflow_id must be set"),
        (store_pb2.PrefetchRequest(prompt=text, workflow_id="w"), StatusCode.NOT_FOUND, "is not open"),
        (store_pb2.PrefetchRequest(prompt=types_pb2.Prompt()), StatusCode.INVALID_ARGUMENT, "prompt: one of text"),
        (store_pb2.PrefetchRequest(workflow_id="w"), StatusCode.NOT_FOUND, "workflow 'w' is not open"),
        (store_pb2.PrefetchRequest(prompt=text, tenant="t" * 257), StatusCode.INVALID_ARGUMENT, "tenant: at most 256 bytes"),
    ]
    async with running(ScriptedWorker("w1")) as rig:
        for request, code, problem in refused:
            with pytest.raises(aio.AioRpcError, match=problem) as error:
                await prefetch(rig, request)
            assert error.value.code() is code


async def test_a_prompt_to_prefetch_is_charged_to_its_tenant_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    go, reading = asyncio.Event(), asyncio.Event()
    async with running(ScriptedWorker("w1"), limits={"tenant_steps": 1}) as rig:
        read = rig.gateway.submission.prompts.read

        async def slowly(prompt: Any, limits: Any, tenant: str) -> Any:
            reading.set()
            await go.wait()
            return await read(prompt, limits, tenant)

        monkeypatch.setattr(rig.gateway.submission.prompts, "read", slowly)
        request = store_pb2.PrefetchRequest(prompt=types_pb2.Prompt(text="a"), tenant="red")
        first = asyncio.create_task(prefetch(rig, request))
        await asyncio.wait_for(reading.wait(), PATIENCE_S)
        with pytest.raises(aio.AioRpcError, match=r"limits\.tenant_steps"):
            await prefetch(rig, request)
        lease = store_pb2.LeaseBlocksRequest(prompt=request.prompt, tenant="red", lease_id="l", lease_s=1.0)
        async with connect(rig.address) as channel:
            with pytest.raises(aio.AioRpcError, match=r"limits\.tenant_steps"):
                await store_pb2_grpc.StoreServiceStub(channel).LeaseBlocks(lease, timeout=PATIENCE_S)
        go.set()
        await asyncio.wait([first])
        assert len(rig.gateway.submission.admission) == 0


async def test_without_a_worker_there_is_nothing_to_prefetch_to() -> None:
    async with running() as rig:
        with pytest.raises(aio.AioRpcError, match="there is no worker") as error:
            await prefetch(rig, store_pb2.PrefetchRequest(prompt=types_pb2.Prompt(text="a")))
        assert error.value.code() is StatusCode.UNAVAILABLE
