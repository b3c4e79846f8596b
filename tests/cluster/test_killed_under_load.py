"""Members and Redis are killed, one after another, while workflows run that need every tier.

Whatever dies, clients of two gateways get the tokens that plain `transformers` would have given them, each once; and
afterwards no slot has leaked, and the index says what the workers hold.
"""

import asyncio
import os
import random
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pbkv_cluster.cli.serving.status import degraded
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.client.inspection import InspectionClient
from pbkv_cluster.client.store import StoreClient
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.config import load
from tests.polling import eventually, wait_for

pytestmark = pytest.mark.slow

REDIS = "redis"
KILLS = 6
BACK_S = 120.0
STEPS = 6  # of each workflow
REPLY = 24  # tokens
AT_ONCE = 10  # workflows
LEASE_S = 3.0


@pytest.fixture(scope="module")
def cluster(small_model: Path) -> Iterator[LocalCluster]:
    """Uses float64, so that rounding cannot change an output; its GPU tiers hold half of what is wanted at a time."""
    flags = {
        "cluster.name": f"test-{uuid.uuid4().hex[:8]}",
        "cluster.workers": 2,
        "model.path": str(small_model),
        "model.dtype": "float64",
        "engine.gpu_blocks": 80,
        "engine.host_blocks": 160,
        "gateway.replicas": 2,
        "gateway.port": 0,
        "gateway.http_port": 0,
        "redis.lease_s": LEASE_S,
    }
    with LocalCluster(load(flags=flags).config) as running:
        yield running


class Prompts:
    """What each step asks, and what must come back."""

    def __init__(self, model: Path, seed: int) -> None:
        self._module: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
        self._module.generation_config.eos_token_id = None
        self._seed = seed
        self._shared = random.Random(seed).choices(range(5, 250), k=64)

    def of(self, workflow: int, step: int) -> list[int]:
        """The beginning that all share, then the workflow's own context, which grows from step to step."""
        own = random.Random(f"{self._seed} {workflow}").choices(range(5, 250), k=40 * STEPS)
        return self._shared + own[: 40 * (step + 1)]

    def expects(self, workflow: int, step: int, reply: list[int]) -> bool:
        """Whether a reply is the greedy one: each of its tokens is the likeliest after all before it."""
        prompt = self.of(workflow, step)
        with torch.inference_mode():
            likeliest = self._module(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].argmax(-1)
        return bool(likeliest.tolist() == reply)


def redis_pid() -> int:
    found = [child.pid for child in psutil.Process().children() if child.name() == "redis-server"]
    return found[0] if found else 0


def process_of(cluster: LocalCluster, victim: str) -> int:
    return redis_pid() if victim == REDIS else cluster.pids(BACK_S)[victim]


def kill_one(cluster: LocalCluster, victim: str) -> None:
    """Kills one, and waits until another process has taken its place."""
    killed = process_of(cluster, victim)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: process_of(cluster, victim) not in (killed, 0), BACK_S, lambda: f"{victim} has not come back")


async def well(cluster: LocalCluster) -> bool:
    async with AsyncClient(cluster.gateway_addresses) as client:
        status = await client.status()
    return len(status.gateways) == len(status.workers) == 2 and not degraded(status)


@pytest.mark.parametrize("seed", range(3))
async def test_every_step_is_answered_rightly_whatever_is_killed(cluster: LocalCluster, small_model: Path, seed: int) -> None:
    prompts, chance = Prompts(small_model, seed), random.Random(seed)
    names = [*await asyncio.to_thread(cluster.pids, BACK_S), REDIS]
    victims = [chance.choice(names) for _ in range(KILLS)]
    replies: dict[tuple[int, int], list[int]] = {}
    answered = asyncio.Condition()
    storm = True

    async def workflows(lane: int) -> None:
        """Workflows, one after the other, as long as something is still to be killed."""
        number = lane
        async with AsyncClient(chance.sample(cluster.gateway_addresses, 2)) as client:
            while storm:
                async with await client.start_workflow(f"{seed} {number}") as workflow:
                    for step in range(STEPS):
                        result = await workflow.run(
                            agent=f"agent {step % 3}", prompt=prompts.of(number, step), max_tokens=REPLY, ignore_eos=True
                        )
                        async with answered:
                            replies[number, step] = list(result.token_ids)
                            answered.notify_all()
                number += AT_ONCE

    lanes = [asyncio.create_task(workflows(lane)) for lane in range(AT_ONCE)]
    for victim in victims:
        enough = len(replies) + chance.randrange(10, 30)
        async with asyncio.timeout(BACK_S), answered:
            while len(replies) < enough:
                await answered.wait()
        await asyncio.to_thread(kill_one, cluster, victim)
        await eventually(lambda: well(cluster), BACK_S)
    storm = False
    await asyncio.wait_for(asyncio.gather(*lanes), BACK_S)

    for (number, step), reply in replies.items():
        where = f"step {step} of workflow {number}, after the kills of {victims}"
        assert len(reply) == REPLY, where
        assert prompts.expects(number, step, reply), where
    await nothing_is_left(cluster)


async def nothing_is_left(cluster: LocalCluster) -> None:
    addresses = cluster.gateway_addresses
    async with AsyncClient(addresses) as client, StoreClient(addresses) as store, InspectionClient(addresses) as inspection:

        async def idle() -> bool:
            status = await client.status()
            return status.running_steps == 0 and not (await inspection.workflows()).workflows

        async def index_is_right() -> bool:
            found = await inspection.check_index()
            return found.unbacked_blocks == found.missing_blocks == found.misplaced_blocks == 0

        await eventually(idle, BACK_S)
        assert (await store.check()).damaged_blocks == 0
        await eventually(index_is_right, BACK_S)
        assert (await store.stat()).tiers[0].used_blocks > 0
        await store.clear()
        for tier in (await store.stat()).tiers:
            assert (tier.used_blocks, tier.locked_blocks) == (0, 0)
