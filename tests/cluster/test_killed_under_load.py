"""Members and Redis are killed, one after another, while workflows run that need every tier.

Whatever dies, clients of two gateways get the tokens that plain `transformers` would have given them, each once; and
afterwards no slot has leaked, and within two leases the index says what the workers hold.
"""

import asyncio
import os
import random
import signal
import time
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
from pbkv_cluster.rpc.v1.inspection_pb2 import WorkflowSummary
from tests.polling import eventually, wait_for

pytestmark = pytest.mark.slow

REDIS, HOST_STORE = "redis", "host-store-0"
WORKERS = ("worker-0", "worker-1")
KILLS = 6
BACK_S = 120.0
STEPS = 6  # of each workflow
REPLY = 24  # tokens
AT_ONCE = 10  # workflows
LEASE_S = 3.0
WORKFLOW_LEASE_S = 60.0


@pytest.fixture(scope="module")
def cluster(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Uses float64, so that rounding cannot change an output. GPU and host tiers hold less than is wanted at a time, so that
    blocks come from the disk, too, some of them ahead of their use.
    """
    flags = {
        "cluster.name": f"test-{uuid.uuid4().hex[:8]}",
        "cluster.workers": 2,
        "model.path": str(small_model),
        "model.dtype": "float64",
        "engine.gpu_blocks": 60,
        "engine.host_blocks": 30,
        "engine.disk_path": str(tmp_path_factory.mktemp("disk")),
        "engine.disk_bytes": 8 << 20,
        "cache.stage": True,
        "gateway.replicas": 2,
        "gateway.port": 0,
        "gateway.http_port": 0,
        "gateway.workflow_lease_s": WORKFLOW_LEASE_S,
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


async def staged(cluster: LocalCluster) -> int:
    """Blocks that the workers have staged from the disk since they started."""
    async with StoreClient(cluster.gateway_addresses) as store:
        return (await store.stat()).decisions["stage_from_disk"]


async def well(cluster: LocalCluster) -> bool:
    async with AsyncClient(cluster.gateway_addresses) as client:
        status = await client.status()
    return len(status.gateways) == len(status.workers) == 2 and not degraded(status)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
async def test_every_step_is_answered_rightly_whatever_is_killed(cluster: LocalCluster, small_model: Path, seed: int) -> None:
    prompts, chance = Prompts(small_model, seed), random.Random(seed)
    names = [*await asyncio.to_thread(cluster.pids, BACK_S), REDIS]
    victims = [chance.choice(WORKERS), HOST_STORE, REDIS]  # what has blocks, and the index of them
    victims += chance.choices(names, k=KILLS - len(victims))
    chance.shuffle(victims)
    replies: dict[tuple[int, int], list[int]] = {}
    answered = asyncio.Condition()
    storm, from_disk = True, 0

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
        from_disk += await staged(cluster)
    storm = False
    await asyncio.wait_for(asyncio.gather(*lanes), BACK_S)

    for (number, step), reply in replies.items():
        where = f"step {step} of workflow {number}, after the kills of {victims}"
        assert len(reply) == REPLY, where
        assert prompts.expects(number, step, reply), where
    assert from_disk > 0, "no block was staged between the kills"
    await nothing_is_left(cluster)


async def nothing_is_left(cluster: LocalCluster) -> None:
    addresses = cluster.gateway_addresses
    async with AsyncClient(addresses) as client, StoreClient(addresses) as store, InspectionClient(addresses) as inspection:
        left: list[WorkflowSummary] = []

        async def idle() -> bool:
            left[:] = (await inspection.workflows()).workflows
            return not left and (await client.status()).running_steps == 0

        async def index_is_right() -> bool:
            found = await inspection.check_index()
            return found.unbacked_blocks == found.missing_blocks == found.misplaced_blocks == 0

        # A workflow whose start was lost with its gateway, so that its client has started another, ends by its lease.
        await eventually(idle, WORKFLOW_LEASE_S + BACK_S, lambda: f"there are still {left}")
        idle_since = looked_at = time.monotonic()
        while not await index_is_right():
            assert looked_at - idle_since < 2 * LEASE_S, "a look that has begun two leases later shows an index that is wrong"
            looked_at = time.monotonic()
        assert (await store.check()).damaged_blocks == 0
        assert all(tier.used_blocks for tier in (await store.stat()).tiers)
        await store.clear()
        for tier in (await store.stat()).tiers:
            assert (tier.used_blocks, tier.locked_blocks) == (0, 0)
