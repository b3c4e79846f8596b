"""Real vLLM engines as the workers of a cluster: what clients, placement and operators see of them."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.cli.main import main
from pbkv_cluster.client import AsyncClient, Client, Finished, Tokens
from pbkv_cluster.client.store import StoreClient
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.nodes.vllm_host import VllmHost
from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, StartupError
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.usage import Tier
from tests.integrations.vllm.engines import vllm
from tests.integrations.vllm_worker.clusters import batches, both_up, engine_of, entries, prompt
from tests.integrations.vllm_worker.conftest import ARGS, MAX_CONTEXT, PYTHON, settings
from tests.polling import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs vLLM: make test-vllm"),
    pytest.mark.timeout(700),
]

TOKENS = 24


PROMPTS = [prompt(seed, 150 + 40 * seed) for seed in range(4)]


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What vLLM makes of the prompts when nothing of ours is around it."""
    with vllm(model, tmp_path_factory.mktemp("logs") / "alone.log", kv_cache_memory_bytes=64 << 20) as engine:
        engine.wait()
        return [engine.generate(each, tokens=TOKENS)[0][0] for each in PROMPTS]


@pytest.fixture(scope="module")
def served(expected: list[list[int]], cluster: LocalCluster) -> LocalCluster:
    """The cluster, after the engine alone has ended."""
    return cluster


async def test_greedy_tokens_are_those_of_vllm_alone(served: LocalCluster, model: Path, expected: list[list[int]]) -> None:
    codec = TextCodec.load(str(model))
    async with AsyncClient(served.gateway_address) as client, await client.start_workflow() as workflow:
        for _ in range(2):  # computed, then cached
            runs = (workflow.run(agent="a", prompt=each, max_tokens=TOKENS, ignore_eos=True) for each in PROMPTS)
            results = await asyncio.gather(*runs)
            assert [list(each.token_ids) for each in results] == expected
            assert [each.text for each in results] == [codec.decode(each) for each in expected]


async def test_a_workflows_next_step_goes_to_the_worker_that_has_its_prefix(served: LocalCluster) -> None:
    """Other workflows go on elsewhere: it is the KV events that lead each back, with the usage record of what it found."""
    async with AsyncClient(served.gateway_address) as client:
        workers = []
        for seed in range(4):
            first = prompt(100 + seed, 640)
            async with await client.start_workflow() as one:
                begun = await one.run(agent="planner", prompt=first, max_tokens=8, ignore_eos=True)
            longer = [*first, *begun.token_ids, *prompt(200 + seed, 50)]

            async def placed(longer: list[int] = longer, where: str = begun.usage.worker_id) -> bool:
                # Of another workflow: nothing but the index says where the prefix lies.
                async with await client.start_workflow() as other:
                    result = await other.run(agent="coder", prompt=longer, max_tokens=1)
                return result.usage.worker_id == where and result.usage.delivered == {Tier.GPU: 640}

            await eventually(placed)
            workers.append(begun.usage.worker_id)
        status = await client.status()
    assert sum(times for reason, times in status.decisions.items() if reason.startswith("route_")) >= 8
    assert len(status.workers) == 2


async def test_tenants_share_nothing(served: LocalCluster) -> None:
    shared = prompt(300, 320)
    async with AsyncClient(served.gateway_address) as client:
        for tenant, delivered in (("one", 0), ("two", 0), ("one", 288)):
            async with await client.start_workflow(tenant=tenant) as workflow:

                async def found(workflow: Any = workflow, delivered: int = delivered) -> bool:
                    result = await workflow.run(agent="a", prompt=shared, max_tokens=1)
                    return bool(sum(result.usage.delivered.values()) >= delivered)

                if delivered:
                    await eventually(found)
                else:
                    result = await workflow.run(agent="a", prompt=shared, max_tokens=1)
                    assert result.usage.delivered == {}


async def test_tokens_stream(served: LocalCluster) -> None:
    async with AsyncClient(served.gateway_address) as client, await client.start_workflow() as workflow:
        events = [event async for event in workflow.stream(agent="a", prompt=PROMPTS[0], max_tokens=30, ignore_eos=True)]
    pieces = [event for event in events if isinstance(event, Tokens)]
    assert len(pieces) > 5, "the output arrived in one piece"
    assert sum(len(piece.token_ids) for piece in pieces) == 30
    assert isinstance(events[-1], Finished)


async def test_sampling_parameters_are_followed(served: LocalCluster, model: Path, expected: list[list[int]]) -> None:
    codec = TextCodec.load(str(model))
    async with AsyncClient(served.gateway_address) as client, await client.start_workflow() as workflow:

        async def run(**options: Any) -> Any:
            return await workflow.run(agent="a", prompt=PROMPTS[0], **{"max_tokens": TOKENS, "ignore_eos": True, **options})

        one, same, other = [await run(temperature=1.0, seed=seed) for seed in (5, 5, 6)]
        assert one.token_ids == same.token_ids != other.token_ids
        assert list((await run(temperature=1.0, top_p=1e-6, seed=7)).token_ids) == expected[0]
        with_logprobs = await run(top_logprobs=3)
        assert [each.top[0][0] for each in with_logprobs.logprobs] == expected[0]
        assert all(each.logprob == each.top[0][1] and len(each.top) == 3 for each in with_logprobs.logprobs)
        text = codec.decode(expected[0])
        stop = next(piece for piece in map(codec.token_text, expected[0][4:]) if text.count(piece) and piece.isprintable())
        stopped = await run(stop=[stop])
        assert stopped.text == text[: text.index(stop)]
        assert stopped.usage.prefill_s > 0 < stopped.usage.decode_s
        with pytest.raises(FailedPrecondition, match=r"^sampling\.forced_output: "):
            await run(forced_output=[1, 2])
        with pytest.raises(InvalidArgument, match=r"^prompt\.token_ids: 4096 tokens leave no room"):
            await workflow.run(agent="a", prompt=[1] * MAX_CONTEXT, max_tokens=1)


async def test_steps_that_are_cancelled_or_late_end_in_vllm(served: LocalCluster) -> None:
    """Its scheduler runs batches as long as it has a request: here they cease long before the steps' last tokens."""
    async with AsyncClient(served.gateway_address) as client, await client.start_workflow() as workflow:

        async def running() -> int:
            return sum(worker.running + worker.waiting for worker in (await client.status()).workers)

        stream = workflow.stream(agent="a", prompt=prompt(400, 64), max_tokens=3900, ignore_eos=True)
        received = 0
        async for event in stream:
            received += isinstance(event, Tokens)
            if received == 3:
                break
        await stream.aclose()
        with pytest.raises(DeadlineExceeded):
            await workflow.run(agent="a", prompt=prompt(401, 64), max_tokens=3900, ignore_eos=True, timeout_s=0.3)

        async def none_runs() -> bool:
            return await running() == 0

        await eventually(none_runs)
        before = await batches(served)
        await workflow.run(agent="a", prompt=prompt(402, 64), max_tokens=4, ignore_eos=True)
        assert await batches(served) - before < 100


async def test_operators_see_which_engine_it_is_and_what_it_holds(
    served: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncClient(served.gateway_address) as client:
        await both_up(client)
    for entry in await entries(served):
        assert (entry.engine.partition(" ")[0], entry.host_blocks) == ("vllm", 0)
        # What vLLM makes of 64 MiB of KV in blocks of its own.
        assert entry.gpu_blocks * entry.block_bytes == 64 << 20
    with pytest.raises(SystemExit, match=r"^0$"):
        await asyncio.to_thread(main, ["status", "--endpoint", served.gateway_address, "--json", "-"])
    workers = json.loads(capsys.readouterr().out)["workers"]
    assert all(worker["engine"].startswith("vllm 0.") for worker in workers)
    assert sum(worker["tiers"]["gpu"]["used_blocks"] for worker in workers) > 100
    assert all(worker["tiers"].keys() == {"gpu"} for worker in workers)
    for absent in ("guard", "prefetch", "access_workflows"):
        assert all(worker[absent] is None for worker in workers)
    with pytest.raises(SystemExit, match=r"^0$"):
        await asyncio.to_thread(main, ["cache", "check", "--endpoint", served.gateway_address])
    async with StoreClient(served.gateway_address) as store:
        assert (await store.clear()).dropped_blocks > 100
        assert (await store.clear()).dropped_blocks == 0, "no request has told of it, and it is known all the same"


async def test_forecasts_of_all_workflows_reach_vllms_connector(served: LocalCluster, told: Path) -> None:
    """With the workflow of each request, and its end with the next request of another."""

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in told.read_text().splitlines()]

    async with AsyncClient(served.gateway_address) as client:
        async with await client.start_workflow(tenant="told") as workflow:
            for agent in ("planner", "coder"):
                await workflow.run(agent=agent, prompt=PROMPTS[0], max_tokens=2)
        named = [each["transfer"]["pbkv"] for each in lines() if each["salt"] == "told"]
        assert named == [{"workflow": workflow.id, "agent": agent} for agent in ("planner", "coder")]

        async def is_told_of_the_end() -> bool:
            async with await client.start_workflow() as other:
                runs = (other.run(agent="a", prompt=prompt(seed, 40), max_tokens=1) for seed in (500, 501, 502, 503))
                await asyncio.gather(*runs)  # on both workers
            return ["demote", workflow.id] in [hint for each in lines() for hint in each["hints"]]

        await eventually(is_told_of_the_end)
        assert ["retain", workflow.id] in [hint for each in lines() for hint in each["hints"]]


@pytest.mark.parametrize("victim", ["the worker's process", "vLLM's engine"])
async def test_a_lost_worker_costs_no_step(served: LocalCluster, expected: list[list[int]], victim: str) -> None:
    async with AsyncClient(served.gateway_address) as client, await client.start_workflow() as workflow:
        await both_up(client)
        begun = await workflow.run(agent="a", prompt=PROMPTS[1], max_tokens=2, ignore_eos=True)
        (entry,) = [each for each in await entries(served) if each.worker_id == begun.usage.worker_id]
        stream = workflow.stream(agent="a", prompt=PROMPTS[1], max_tokens=1000, ignore_eos=True)
        tokens: list[int] = []
        killed = False
        async for event in stream:
            if isinstance(event, Tokens):
                tokens += event.token_ids
            if len(tokens) > 5 and not killed:
                os.kill(entry.pid if victim == "the worker's process" else engine_of(entry.pid), signal.SIGKILL)
                killed = True
        assert len(tokens) == 1000
        assert tokens[:TOKENS] == expected[1]
        await both_up(client)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({"blok_size": 32}, r"^vllm\.args\.blok_size: .* did you mean block_size\?$"),
        ({"num_gpu_blocks_override": "many"}, r"^vllm\.args\.num_gpu_blocks_override: Input should be a valid integer"),
    ],
)
async def test_wrong_arguments_are_told_by_name(model: Path, tmp_path: Path, args: dict[str, Any], problem: str) -> None:
    config = load(flags=settings(model, **{"vllm.args": {**ARGS, **args}})).config
    context = MemberContext(config, "redis://127.0.0.1:1", "127.0.0.1", "node-0", state_dir=str(tmp_path))
    host = VllmHost(context, "worker-0")
    with pytest.raises(StartupError, match=problem):
        await host.start()
    await host.stop()


def test_the_client_needs_to_know_nothing(served: LocalCluster) -> None:
    with Client(served.gateway_address) as client, client.start_workflow() as workflow:
        step = workflow.run(agent="a", prompt=[{"role": "user", "content": "Hello there"}], max_tokens=4)
    assert step.usage.worker_id.startswith("worker-")
