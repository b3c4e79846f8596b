"""Steps while something breaks: workers, connections to them, the index, the directory."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.v1 import types_pb2
from pbkv_cluster.store.cluster_index import RedisServer, connect
from tests.gateway.peers import ScriptedWorker, answer_tokens
from tests.gateway.rig import Answer, Rig, read, refused, running, until
from tests.gateway.wire import broken_wire
from tests.polling import eventually

EIGHT = types_pb2.Sampling(max_tokens=8, seed=11)


def assert_complete(answer: Answer, sampling: types_pb2.Sampling = EIGHT) -> None:
    """Every token once, and the whole text."""
    assert answer.token_ids == answer_tokens(sampling)
    assert answer.text == "".join(map(chr, answer.token_ids))
    assert len(answer.accepted) == len(answer.finished) == 1


@pytest.mark.parametrize("hold_chars", [0, 1, 3, 8])
@pytest.mark.parametrize("stop_at", [0, 1, 5])
async def test_a_worker_lost_under_a_step_costs_no_token_and_no_character(stop_at: int, hold_chars: int) -> None:
    doomed = ScriptedWorker("w0", stop_at=stop_at, hold_chars=hold_chars)
    async with running(doomed) as rig, broken_wire(doomed.address) as wire:
        doomed.address = wire.address
        doomed.incarnation = "2"
        await rig.directory.announce_worker(doomed.record())
        await rig.sees(lambda status: status.workers[0].address == wire.address, "the wire is in use")
        call = rig.submit(await rig.start_workflow(), sampling=EIGHT)
        reading = asyncio.create_task(read(call))
        await doomed.stopped.wait()
        await rig.add_worker(ScriptedWorker("w1", hold_chars=2, captured={Tier.HOST: 16}))
        await rig.sees(lambda status: len(status.workers) == 2, "the other worker is known")
        wire.cut()
        answer = await reading
        assert_complete(answer)
        assert (answer.usage.retries, answer.usage.worker_id, answer.usage.generated_tokens) == (1, "w1", 8)
        assert answer.usage.available_tokens == 16, "what some tier had, an infinite cache has too"
        first, second = doomed.requests[0].sampling, rig.workers[1].requests[0].sampling
        assert first == second, "the retry draws the same tokens"
        assert (await rig.status()).decisions["worker_lost"] == 1


@pytest.mark.parametrize("kind", ["server_stops", "ends_early"])
async def test_a_stream_that_ends_too_soon_goes_on_elsewhere(kind: str) -> None:
    doomed = ScriptedWorker("w0", stop_at=3, end_early=kind == "ends_early")
    async with running(doomed, ScriptedWorker("w1")) as rig:
        reading = asyncio.create_task(rig.run(await rig.start_workflow(), sampling=EIGHT))
        await doomed.stopped.wait()
        if kind == "server_stops":
            await doomed.server.stop(0)
        answer = await reading
        assert_complete(answer)
        assert (answer.usage.worker_id, answer.usage.retries) == ("w1", 1)


async def test_the_only_worker_is_tried_again_after_a_cut_connection() -> None:
    worker = ScriptedWorker("w0", stop_at=4)
    await worker.start()
    async with broken_wire(worker.address) as wire, running() as rig:
        worker.address = wire.address
        await rig.directory.announce_worker(worker.record())
        reading = asyncio.create_task(rig.run(await rig.start_workflow(), sampling=EIGHT))
        await worker.stopped.wait()
        wire.cut()
        await until(lambda: worker.cancelled == 1, "the worker notices")
        worker.go.set()
        await wire.mend()
        assert_complete(await reading)
        await worker.server.stop(0)


async def test_a_step_survives_a_defect_of_one_worker() -> None:
    async with running(ScriptedWorker("w0", fail_with=grpc.StatusCode.INTERNAL), ScriptedWorker("w1")) as rig:
        assert_complete(await rig.run(await rig.start_workflow(), sampling=EIGHT))


async def test_a_defect_of_the_only_worker_is_reported_at_once() -> None:
    worker = ScriptedWorker("w0", fail_with=grpc.StatusCode.INTERNAL)
    async with running(worker) as rig:
        async with refused(grpc.StatusCode.INTERNAL):
            await rig.run(await rig.start_workflow())
        assert len(worker.requests) == 1


async def test_losing_more_workers_than_allowed_fails_the_step() -> None:
    workers = [ScriptedWorker(f"w{n}", fail_with=grpc.StatusCode.UNAVAILABLE) for n in range(4)]
    async with running(*workers, retry_limit=1) as rig:
        async with refused(grpc.StatusCode.UNAVAILABLE, "2 workers were lost under the step"):
            await rig.run(await rig.start_workflow())
        assert sum(len(worker.requests) for worker in workers) == 2


async def test_a_full_worker_is_passed_over_once() -> None:
    full = [ScriptedWorker(f"w{n}", fail_with=grpc.StatusCode.RESOURCE_EXHAUSTED) for n in range(3)]
    async with running(*full) as rig:
        workflow = await rig.start_workflow()
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            await rig.run(workflow)
        assert sorted(len(worker.requests) for worker in full) == [0, 1, 1]
        await rig.directory.withdraw_worker("w1")
        await rig.directory.withdraw_worker("w2")
        await rig.add_worker(ScriptedWorker("w9"))
        await rig.sees(lambda status: any(each.worker_id == "w9" for each in status.workers), "the new worker is known")
        assert (await rig.run(workflow)).usage.worker_id == "w9"


async def test_the_refusal_of_a_worker_is_passed_on() -> None:
    workers = [ScriptedWorker(f"w{n}", fail_with=grpc.StatusCode.FAILED_PRECONDITION) for n in range(2)]
    async with running(*workers) as rig:
        workflow = await rig.start_workflow()
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "scripted"):
            await rig.run(workflow)
        assert sum(len(worker.requests) for worker in workers) == 1


async def test_without_workers_a_step_waits_and_then_fails() -> None:
    async with running(worker_wait_s=0.2) as rig:
        workflow = await rig.start_workflow()
        async with refused(grpc.StatusCode.UNAVAILABLE, "no worker was reachable for 0.2 s"):
            await rig.run(workflow)


async def test_a_step_waits_for_its_first_worker() -> None:
    async with running() as rig:
        reading = asyncio.create_task(rig.run(await rig.start_workflow(), sampling=EIGHT))
        await rig.sees(lambda status: status.decisions["worker_wait"] == 1, "the step waits")
        await rig.add_worker(ScriptedWorker("w0"))
        assert_complete(await reading)


async def _two_workers_with_affinity(rig: Rig) -> tuple[str, str]:
    workflow = await rig.start_workflow()
    return workflow, (await rig.run(workflow)).usage.worker_id


async def test_without_redis_steps_go_on_by_affinity() -> None:
    async with AsyncExitStack() as stack:
        redis = RedisServer.start()
        stack.callback(redis.stop)
        rig = await stack.enter_async_context(running(ScriptedWorker("w0"), ScriptedWorker("w1"), redis_url=redis.url))
        workflow, home = await _two_workers_with_affinity(rig)
        await until(lambda: rig.gateway.mirror.is_current, "the mirror has a copy")
        redis.stop()
        await until(lambda: rig.gateway.mirror.has_lost_redis, "the mirror knows that the index is away")
        for _ in range(3):
            assert (await rig.run(workflow)).usage.worker_id == home
        decisions = (await rig.status()).decisions
        assert decisions["route_blind_affinity"] == 3
        await rig.sees(lambda status: not status.index_reachable, "the index is known to be away")
        other = await rig.start_workflow(workflow_id="made meanwhile")
        assert len((await rig.run(other)).token_ids) == 4
        async with refused(grpc.StatusCode.UNAVAILABLE):
            await rig.run("who knows")
        await rig.end_workflow(workflow)
        async with refused(grpc.StatusCode.NOT_FOUND):
            await rig.run(workflow)


async def test_a_gateway_starts_without_redis() -> None:
    async with AsyncExitStack() as stack:
        redis = RedisServer.start()
        stack.callback(redis.stop)
        rig = await stack.enter_async_context(running(redis_url=redis.url))
        await rig.start_workflow()
        redis.stop()
        await rig.restart_gateway()
        assert (await rig.status()).open_workflows == 0


async def test_a_redis_that_comes_back_empty_is_filled_again() -> None:
    async with AsyncExitStack() as stack:
        redis = RedisServer.start(password="fixed")
        stack.callback(redis.stop)
        rig = await stack.enter_async_context(running(ScriptedWorker("w0"), redis_url=redis.url))
        workflow = await rig.start_workflow(workload="w")
        redis.stop()
        await rig.sees(lambda status: not status.index_reachable, "the index is away")
        assert len((await rig.run(workflow)).token_ids) == 4
        port = int(redis.url.rpartition(":")[2].partition("/")[0])
        again = RedisServer.start(password="fixed", port=port)
        stack.callback(again.stop)
        await rig.sees(lambda status: status.index_reachable, "the index is back")
        assert len((await rig.run(workflow)).token_ids) == 4, "workers that are well are not forgotten with it"
        assert (await rig.recorded(workflow, steps=2)).workload == "w"


async def test_a_workflow_that_says_nothing_is_written_again_when_redis_has_lost_it() -> None:
    async with AsyncExitStack() as stack:
        redis = RedisServer.start()
        stack.callback(redis.stop)
        rig = await stack.enter_async_context(running(redis_url=redis.url))
        workflow = await rig.start_workflow(workload="w")
        own = await stack.enter_async_context(connect(redis.url))

        async def written() -> bool:
            return await rig.directory.workflow(workflow) is not None

        async def stamped() -> bool:
            return bool([key async for key in own.scan_iter(match="pbkv:*stamp:*")])

        await eventually(written)
        await eventually(stamped)
        await own.flushall()
        assert not await written()
        await eventually(written)
        assert (await rig.status()).decisions["records_rewritten"] == 1
        await rig.end_workflow(workflow)
        assert not await written()


async def test_an_empty_directory_is_believed_after_one_lease() -> None:
    clock = ManualClock()
    async with running(ScriptedWorker("w0"), clock=clock, worker_wait_s=0.2) as rig:
        workflow = await rig.start_workflow(lease_s=1e5)
        await rig.directory.withdraw_worker("w0")
        await rig.add_worker(ScriptedWorker("w1"))
        await rig.sees(lambda status: [each.worker_id for each in status.workers] == ["w1"], "w0 is forgotten")
        await rig.directory.withdraw_worker("w1")
        assert len((await rig.run(workflow)).token_ids) == 4
        await rig.sees(lambda status: _ticks(clock) and not status.workers, "w1 is forgotten too")
        async with refused(grpc.StatusCode.UNAVAILABLE, "no worker was reachable"):
            await rig.run(workflow)


def _ticks(clock: ManualClock) -> bool:
    clock.advance(1.0)
    return True
