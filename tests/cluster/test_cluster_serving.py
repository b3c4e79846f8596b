"""The whole system over real gRPC, Ray and Redis: steps are served, share the cache, and survive the loss of any member."""

import asyncio
import json
import os
import random
import signal
from typing import Any

import psutil
import pytest

from pbkv_cluster.cli.main import main
from pbkv_cluster.cli.serving.serve import print_addresses
from pbkv_cluster.client import Accepted, AsyncClient, Client, Finished, Tokens
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.cluster.startup.acquaintance import find_strangers
from pbkv_cluster.core.errors import InvalidArgument, NotFound, Unavailable
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2
from pbkv_cluster.store.cluster_index import Directory, connect
from tests.polling import eventually, wait_for

Status = workflow_pb2.GetClusterStatusResponse


def ids(length: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(5, 4000) for _ in range(length)]


def running_steps(status: Status) -> int:
    return sum(worker.running + worker.waiting for worker in status.workers)


def locked_blocks(status: Status) -> int:
    return sum(
        tier.locked_blocks for worker in status.workers for tier in worker.store.tiers if tier.tier == types_pb2.TIER_GPU
    )


async def all_workers_up(client: AsyncClient) -> None:
    async def up() -> bool:
        workers = (await client.status()).workers
        return len(workers) == 2 and all(worker.reachable for worker in workers)

    await eventually(up, 90)


def test_the_sync_client_serves_text_and_reuses_the_prompt(cluster: LocalCluster) -> None:
    with Client(cluster.gateway_address) as client, client.start_workflow() as workflow:
        first = workflow.run(agent="planner", prompt="Plan a trip to the sea. " * 30, max_tokens=8)
        second = workflow.run(agent="planner", prompt="Plan a trip to the sea. " * 30, max_tokens=8)
    assert first.text == second.text
    assert first.token_ids == second.token_ids
    assert second.usage.delivered.get(Tier.GPU, 0) >= 16 * ((second.usage.prompt_tokens - 1) // 16) > 0
    assert second.usage.available_tokens == second.usage.delivered[Tier.GPU]


def test_operators_see_a_workflow_and_what_of_it_is_cached(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*args: str) -> Any:
        with pytest.raises(SystemExit, match=r"^0$"):
            main([*args, "--endpoint", cluster.gateway_address, "--json", "-"])
        return json.loads(capsys.readouterr().out)

    with Client(cluster.gateway_address) as client, client.start_workflow() as workflow:
        step = workflow.run(agent="planner", prompt=ids(200, seed=77), max_tokens=4)
        value = shown("workflows", "show", workflow.id)
        assert [(each["agent"], each["prompt_tokens"], each["output_tokens"]) for each in value["path"]] == [
            ("planner", 200, 4)
        ]
        assert value["cached"]["tiers"] == {"gpu": 192}
        (entry,) = shown("cache", "ls", "--by", "run", "--workflow", workflow.id)
        assert (entry["agents"], entry["worker_id"], entry["tokens"]) == (["planner"], step.worker_id, 192)
        assert shown("cache", "check")["damaged_blocks"] == 0


def test_the_password_of_redis_is_for_its_owner_alone(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    print_addresses(cluster)
    shown = capsys.readouterr().out
    password = cluster.redis_url.partition("://:")[2].partition("@")[0]
    assert len(password) == 32
    assert password not in shown
    assert "redis      redis://:***@127.0.0.1:" in shown
    assert cluster.redis_url_file is not None
    assert str(cluster.redis_url_file) in shown
    assert cluster.redis_url_file.read_text() == cluster.redis_url
    assert cluster.redis_url_file.stat().st_mode & 0o777 == 0o600


def test_chat_messages_and_token_ids_are_prompts_too(cluster: LocalCluster) -> None:
    with Client(cluster.gateway_address) as client, client.start_workflow() as workflow:
        chat = workflow.run(agent="a", prompt=[{"role": "user", "content": "Hello there"}], max_tokens=4)
        tokens = workflow.run(agent="a", prompt=ids(20, 1), max_tokens=4)
    assert chat.usage.prompt_tokens > 2
    assert tokens.usage.prompt_tokens == 20
    assert len(tokens.token_ids) == 4


def test_ray_runs_only_what_one_machine_needs(cluster: LocalCluster) -> None:
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in commands)
    unwanted = ("monitor.py", "dashboard/dashboard.py")  # of the autoscaler, of logs, and of Ray's own pages
    assert [command for command in commands if any(name in command for name in unwanted)] == []


async def test_a_cluster_that_is_ready_knows_all_its_members(cluster: LocalCluster) -> None:
    """Right after the start: this test comes first of those that could lose a member."""
    async with AsyncClient(cluster.gateway_address) as client:
        status = await client.status()
    assert find_strangers(status, 2) == []


async def test_parallel_steps_compute_a_shared_prefix_once(cluster: LocalCluster) -> None:
    shared = ids(352, 70)
    async with AsyncClient(cluster.gateway_address) as client, await client.start_workflow() as workflow:
        steps = (workflow.run(agent="a", prompt=shared + ids(20, 71 + n), max_tokens=4, ignore_eos=True) for n in range(3))
        results = await asyncio.gather(*steps)
    assert sum(result.usage.computed_tokens for result in results) == 352 + 3 * 20
    assert len({result.usage.worker_id for result in results}) == 1


async def test_tokens_stream_and_add_up(cluster: LocalCluster) -> None:
    async with AsyncClient(cluster.gateway_address) as client, await client.start_workflow() as workflow:
        events = [event async for event in workflow.stream(agent="a", prompt=ids(50, 2), max_tokens=30, ignore_eos=True)]
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Finished)
    pieces = [event for event in events if isinstance(event, Tokens)]
    assert len(pieces) > 5, "the output arrived in one piece"
    assert sum(len(piece.token_ids) for piece in pieces) == 30


async def test_concurrent_workflows_share_their_common_prefix(cluster: LocalCluster) -> None:
    system = ids(320, 3)

    async def workflow(client: AsyncClient, number: int) -> list[int]:
        delivered = []
        async with await client.start_workflow(workload="shared") as run:
            context = list(system)
            for step, agent in enumerate(("planner", "coder", "tester", "coder")):
                context += ids(40, 100 * number + step)
                result = await run.run(agent=agent, prompt=context, max_tokens=8, ignore_eos=True)
                context += result.token_ids
                delivered.append(sum(result.usage.delivered.values()))
        return delivered

    async with AsyncClient(cluster.gateway_address) as client:
        await workflow(client, 0)
        runs = await asyncio.gather(*(workflow(client, number) for number in range(1, 9)))
        status = await client.status()
    assert "/logs/worker-" in status.log_path, "Ray gives each member a log file"
    for delivered in runs:
        assert all(tokens >= 320 for tokens in delivered[1:]), "a workflow lost its own context"
    assert status.totals.steps >= 36
    totals = status.totals
    delivered_tokens = sum(entry.tokens for entry in totals.delivered)
    assert (
        0 < delivered_tokens <= sum(entry.tokens for entry in totals.captured) <= totals.available_tokens < totals.prompt_tokens
    )


async def test_forecasts_reach_the_workers(cluster: LocalCluster) -> None:
    from pbkv_cluster.rpc.channel import connect
    from pbkv_cluster.rpc.v1 import worker_pb2, worker_pb2_grpc

    async with AsyncClient(cluster.gateway_address) as client, await client.start_workflow(workload="f") as workflow:
        await all_workers_up(client)
        worker_id = (await workflow.run(agent="a", prompt=ids(64, 4), max_tokens=2)).worker_id
        status = await client.status()
        address = next(worker.address for worker in status.workers if worker.worker_id == worker_id)
        async with connect(address) as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            before = (await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest())).forecasts_applied

            async def applied() -> bool:
                return (await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest())).forecasts_applied > before

            await workflow.run(agent="b", prompt=ids(64, 4), max_tokens=2)
            await eventually(applied, 60)


async def test_leaving_a_stream_cancels_the_step_and_frees_its_blocks(cluster: LocalCluster) -> None:
    async with AsyncClient(cluster.gateway_address) as client, await client.start_workflow() as workflow:
        stream = workflow.stream(agent="a", prompt=ids(200, 5), max_tokens=4000, ignore_eos=True)
        async for event in stream:
            if isinstance(event, Tokens):
                break
        await stream.aclose()

        async def quiet() -> bool:
            status = await client.status()
            return running_steps(status) == 0 and locked_blocks(status) == 0

        await eventually(quiet, 60)


async def test_ending_a_workflow_cancels_its_steps_and_forgets_it(cluster: LocalCluster) -> None:
    async with AsyncClient(cluster.gateway_address) as client:
        workflow = await client.start_workflow()
        step = asyncio.create_task(workflow.run(agent="a", prompt=ids(100, 6), max_tokens=4000, ignore_eos=True))

        async def busy() -> bool:
            return running_steps(await client.status()) == 1

        await eventually(busy, 60)
        await workflow.end()
        assert (await step).finish_reason == "cancelled"
        with pytest.raises(NotFound, match=workflow.id):
            await workflow.run(agent="a", prompt=ids(10, 6))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [5, 4096]}, "prompt.token_ids"),
        ({"prompt": [5, -3]}, "prompt.token_ids"),
        ({"prompt": [5] * 9000}, "prompt"),
        ({"prompt": [5], "agent": ""}, "agent_id"),
        ({"prompt": [5], "max_tokens": 0}, "sampling.max_tokens"),
        ({"prompt": [5], "max_tokens": -4}, "sampling.max_tokens"),
        ({"prompt": [5], "temperature": -1.0}, "sampling.temperature"),
        ({"prompt": [5], "top_p": 1.5}, "sampling.top_p"),
        ({"prompt": [5], "forced_output": [9999]}, "sampling.forced_output"),
    ],
)
async def test_bad_input_names_the_field_and_the_service_goes_on(
    cluster: LocalCluster, arguments: dict[str, object], field: str
) -> None:
    async with AsyncClient(cluster.gateway_address) as client, await client.start_workflow() as workflow:
        with pytest.raises(InvalidArgument) as caught:
            await workflow.run(**{"agent": "a", **arguments})  # type: ignore[arg-type]
        assert caught.value.field.startswith(field)
        assert (await workflow.run(agent="a", prompt=[5], max_tokens=1)).token_ids


async def test_a_killed_worker_is_replaced_and_its_steps_finish_elsewhere(cluster: LocalCluster) -> None:
    prompts = [ids(120, 70 + number) for number in range(4)]
    tokens = 400
    async with AsyncClient(cluster.gateway_address) as client:
        await all_workers_up(client)
        async with await client.start_workflow() as workflow:
            expected = [await workflow.run(agent="a", prompt=prompt, max_tokens=tokens, ignore_eos=True) for prompt in prompts]
        before = cluster.pids()
        workers: list[str] = []
        halfway = asyncio.Semaphore(0)

        async def step(prompt: list[int]) -> tuple[list[int], str, Finished]:
            seen: list[int] = []
            text = ""
            async with await client.start_workflow() as workflow:
                async for event in workflow.stream(agent="a", prompt=prompt, max_tokens=tokens, ignore_eos=True):
                    match event:
                        case Accepted(worker_id=worker_id):
                            workers.append(worker_id)
                        case Tokens(token_ids=new, text=more):
                            seen += new
                            text += more
                            if len(seen) >= 10 > len(seen) - len(new):  # tokens may come together
                                halfway.release()
                        case Finished():
                            return seen, text, event
            raise AssertionError("the stream ended without its last event")

        steps = [asyncio.create_task(step(prompt)) for prompt in prompts]
        for _ in prompts:
            await halfway.acquire()
        victim = workers[0]
        os.kill(before[victim], signal.SIGKILL)
        results = await asyncio.gather(*steps)
        for (seen, text, finished), plain in zip(results, expected, strict=True):
            assert tuple(seen) == plain.token_ids, "a token is missing or repeated"
            assert text == plain.text
            assert finished.usage.generated_tokens == tokens
        assert sum(finished.usage.retries for _, _, finished in results) >= 1
        await all_workers_up(client)
        assert await asyncio.to_thread(lambda: cluster.pids()[victim]) != before[victim]


async def test_every_worker_learns_from_ended_workflows(cluster: LocalCluster) -> None:
    async with AsyncClient(cluster.gateway_address) as client:
        await all_workers_up(client)
        before = [worker.access_workflows for worker in (await client.status()).workers]
        for number in range(3):
            async with await client.start_workflow() as workflow:
                for agent in ("planner", "coder"):
                    await workflow.run(agent=agent, prompt=ids(60, 90 + number), max_tokens=20, ignore_eos=True)

        async def learnt() -> bool:
            workers = (await client.status()).workers
            return all(worker.access_workflows >= known + 3 for worker, known in zip(workers, before, strict=True))

        await eventually(learnt, 60)


async def test_a_killed_predictor_comes_back_and_steps_go_on(cluster: LocalCluster) -> None:
    async with AsyncClient(cluster.gateway_address) as client, await client.start_workflow() as workflow:
        before = (await asyncio.to_thread(cluster.pids))["predictor"]
        os.kill(before, signal.SIGKILL)
        for number in range(5):
            assert (await workflow.run(agent="a", prompt=ids(30, number), max_tokens=2)).token_ids

        async def back() -> bool:
            return (await client.status()).predictor_reachable

        await eventually(back, 60)

        async def told() -> bool:
            member = next(member for member in (await client.status()).members if member.name == "predictor")
            return member.up and member.restarts > 0 and "killed by a signal" in member.last_failure

        await eventually(told, 60)


async def test_pids_wait_for_a_member_that_is_being_restarted(cluster: LocalCluster) -> None:
    def restarted() -> bool:
        return cluster.pids()["predictor"] != before

    before = (await asyncio.to_thread(cluster.pids))["predictor"]
    os.kill(before, signal.SIGKILL)
    await asyncio.to_thread(wait_for, restarted, 60.0)
    async with AsyncClient(cluster.gateway_address) as client:

        async def back() -> bool:
            return (await client.status()).predictor_reachable

        await eventually(back, 60)


async def recorded(cluster: LocalCluster, workflow_id: str) -> bool:
    """Whether the workflow's one step is in the directory, where a restarted gateway finds it."""
    redis = connect(cluster.redis_url)
    try:
        entry = await Directory(redis, cluster.name, ttl_s=1.0).workflow(workflow_id)
    finally:
        await redis.aclose()
    return entry is not None and entry.steps == 1


async def test_a_killed_gateway_comes_back_and_knows_its_workflows(cluster: LocalCluster) -> None:
    async with AsyncClient(cluster.gateway_address) as client:
        workflow = await client.start_workflow()
        await workflow.run(agent="a", prompt=ids(30, 1), max_tokens=2)
        await eventually(lambda: recorded(cluster, workflow.id), 60)
        before = (await asyncio.to_thread(cluster.pids))["gateway"]
        os.kill(before, signal.SIGKILL)

        async def back() -> bool:
            try:
                return bool((await client.status()).workers)
            except Unavailable:
                return False

        await eventually(back, 60)
        again = await client.start_workflow(workflow.id)
        result = await again.run(agent="a", prompt=ids(30, 1), max_tokens=2)
        assert result.step == 1, "the workflow started over"
        await again.end()
