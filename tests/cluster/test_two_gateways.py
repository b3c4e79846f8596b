"""A cluster with two gateways: workflows at both, and one of them killed in the middle of streamed steps."""

import asyncio
import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbkv_cluster.cli.serving.status import degraded
from pbkv_cluster.client import Accepted, AsyncClient, Finished, Tokens
from pbkv_cluster.client.inspection import InspectionClient
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.config import load
from tests.cluster.scrape import discover
from tests.polling import eventually, wait_for

BACK_S = 120.0
STEPS = 6
LENGTH = 400

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gateways(small_model: Path) -> Iterator[LocalCluster]:
    """Uses float64, so that rounding cannot change the output of a step that goes on elsewhere."""
    flags = {
        "cluster.name": f"test-{uuid.uuid4().hex[:8]}",
        "cluster.workers": 1,
        "model.path": str(small_model),
        "model.dtype": "float64",
        "engine.gpu_blocks": 600,
        "engine.host_blocks": 600,
        "gateway.replicas": 2,
        "gateway.port": 0,
        "gateway.http_port": 0,
        "redis.lease_s": 3.0,
    }
    with LocalCluster(load(flags=flags).config) as running:
        yield running


async def test_both_gateways_are_there_and_known(gateways: LocalCluster) -> None:
    assert [name for name in gateways.pids() if name.startswith("gateway")] == ["gateway", "gateway-1"]
    kinds = Counter(target["kind"] for target in discover(gateways.discovery_url).values())
    assert kinds["gateway"] == 2
    for address in gateways.gateway_addresses:
        async with AsyncClient(address) as client:
            status = await client.status()
        assert [(each.name, each.reachable, each.address) for each in status.gateways] == [
            (name, True, gateways.addresses[name]) for name in ("gateway", "gateway-1")
        ]
        assert len({each.http_address for each in status.gateways} - {""}) == 2
        assert degraded(status) == []


async def test_a_workflow_goes_on_at_either_and_is_listed_by_both(gateways: LocalCluster) -> None:
    first, second = gateways.gateway_addresses
    async with AsyncClient(first) as one, AsyncClient(second) as other:
        workflow = await one.start_workflow("alternating", workload="two gateways")
        again = await other.start_workflow("alternating")
        for number, each in enumerate([workflow, again] * 3):
            assert (await each.run(agent=f"agent-{number % 2}", prompt=[7] * 50 + [number], max_tokens=3)).step == number
        for address in (first, second):
            async with InspectionClient(address) as inspection:
                (listed,) = (await inspection.workflows(workload="two gateways")).workflows
                found = await inspection.workflow("alternating")
            assert (listed.workflow_id, listed.steps) == ("alternating", 6)
            assert [step.agent_id for step in found.steps] == ["agent-0", "agent-1"] * 3
        totals = [(await client.status()).totals for client in (one, other)]
        assert totals[0] == totals[1], "of the whole cluster"
        await again.end()


@pytest.mark.parametrize("victim", ["gateway", "gateway-1"])
async def test_no_token_is_lost_or_repeated_when_a_gateway_is_killed(gateways: LocalCluster, victim: str) -> None:
    first, second = gateways.gateway_addresses
    prompts = [[5 + number] * (40 + number) for number in range(STEPS)]
    async with AsyncClient(second) as client, await client.start_workflow() as workflow:
        reference = [(await workflow.run(agent="a", prompt=prompt, max_tokens=LENGTH, ignore_eos=True)) for prompt in prompts]
    pids = await asyncio.to_thread(gateways.pids, BACK_S)
    begun = asyncio.Event()
    numbers: list[int] = []

    async def one(number: int, endpoints: list[str]) -> tuple[list[int], str]:
        ids: list[int] = []
        text, accepted, finished = "", 0, 0
        async with AsyncClient(endpoints) as client, await client.start_workflow(f"{victim} {number}") as workflow:
            stream = workflow.stream(agent="a", prompt=prompts[number], max_tokens=LENGTH, ignore_eos=True)
            async for event in stream:
                match event:
                    case Accepted():
                        accepted += 1
                    case Tokens():
                        ids += event.token_ids
                        text += event.text
                        if len(ids) >= 20 > len(ids) - len(event.token_ids):
                            numbers.append(number)
                            if len(numbers) == STEPS:
                                begun.set()
                    case Finished():
                        finished += 1
                        assert event.usage.generated_tokens == LENGTH
            assert (accepted, finished) == (1, 1)
            assert (await workflow.run(agent="b", prompt=[3] * 20, max_tokens=2)).step == 1
        return ids, text

    def kill() -> None:
        os.kill(pids[victim], signal.SIGKILL)

    tasks = [asyncio.create_task(one(number, [first, second] if number % 2 else [second, first])) for number in range(STEPS)]
    await asyncio.wait_for(begun.wait(), BACK_S)
    kill()
    outputs = await asyncio.gather(*tasks)
    assert [ids for ids, _ in outputs] == [list(result.token_ids) for result in reference]
    assert [text for _, text in outputs] == [result.text for result in reference]
    survivor = second if victim == "gateway" else first
    async with AsyncClient(survivor) as client:
        assert (await client.status()).decisions["step_resumed"], "the kill came in the middle"
    await asyncio.to_thread(_await_restart, gateways, victim, pids[victim])

    async def well() -> bool:
        async with AsyncClient(second) as client:
            status = await client.status()
        return len(status.gateways) == 2 and not degraded(status) and status.running_steps == 0

    await eventually(well, BACK_S)


def _await_restart(cluster: LocalCluster, name: str, killed: int) -> None:
    wait_for(lambda: cluster.pids(BACK_S)[name] != killed, BACK_S)
