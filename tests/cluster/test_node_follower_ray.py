"""Nodes that join, are drained or die while a cluster serves: real Ray, whose nodes are addresses of this machine."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.client import AsyncClient
from pbkv_cluster.cluster.startup.run_record import running
from pbkv_cluster.rpc.v1 import workflow_pb2
from tests.cluster.conftest import END_S, expect_none_left
from tests.cluster.long_steps import run_steps
from tests.cluster.test_cluster_lifecycle import await_gateway, serve
from tests.polling import eventually

Status = workflow_pb2.GetClusterStatusResponse
SOON_S = 240.0
TOKENS = 600


@pytest.fixture
def ray_nodes(mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of one node, to which others can be added. Nothing of it may be left."""
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PBKV_GATEWAY_HTTP_PORT", "0")  # other tests have clusters at the same time
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # whatever tokens the user of this machine has
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "180")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        add(cluster, "127.0.0.2", include_dashboard=False)
        yield cluster
    finally:
        cluster.shutdown()
    expect_none_left(mark)


def add(cluster: Any, host: str, **options: Any) -> Any:
    return cluster.add_node(node_ip_address=host, num_cpus=1, object_store_memory=80 << 20, wait=False, **options)


def hosts(status: Status) -> dict[str, str]:
    return {node.host: node.state for node in status.nodes}


async def see(client: AsyncClient, condition: Any, what: str) -> Status:
    """Waits until the status is as wanted."""
    seen: list[Status] = []

    async def holds() -> bool:
        seen.append(await client.status())
        return bool(condition(seen[-1]))

    await eventually(holds, SOON_S, lambda: f"{what}: {seen[-1]}")
    return seen[-1]


def serving(status: Status, *wanted: str) -> bool:
    up = {worker.address.rpartition(":")[0] for worker in status.workers if worker.reachable}
    return up == {*wanted} and hosts(status).items() >= dict.fromkeys(wanted, "serving").items()


def workers_at(status: Status, host: str) -> set[str]:
    return {worker.worker_id for worker in status.workers if worker.address.startswith(f"{host}:")}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_members_follow_the_nodes(ray_nodes: Any, small_model: Path) -> None:
    name = f"nodes-{os.getpid()}"
    process = serve(small_model, "--address", ray_nodes.address, "--set", f"cluster.name={name}", "--set", "redis.lease_s=3")
    try:
        endpoint = await_gateway(process)
        asyncio.run(scenario(ray_nodes, endpoint, name))
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 0
    assert "node 127.0.0.10 (" in errors
    assert "Traceback" not in errors
    assert name not in {each.name for each in running()}


async def scenario(ray_nodes: Any, endpoint: str, name: str) -> None:
    async with AsyncClient(endpoint) as client:
        await see(client, lambda status: serving(status, "127.0.0.2"), "the first node serves")
        doomed = add(ray_nodes, "127.0.0.10")
        add(ray_nodes, "127.0.0.11")
        status = await see(
            client, lambda status: serving(status, "127.0.0.2", "127.0.0.10", "127.0.0.11"), "nodes that joined serve"
        )
        victim = workers_at(status, "127.0.0.10")

        started = asyncio.Semaphore(0)
        steps = asyncio.create_task(run_steps(client, 9, TOKENS, started.release))
        for _ in range(9):
            await started.acquire()
        running_there = {worker.worker_id for worker in (await client.status()).workers if worker.running}
        assert running_there >= victim, "steps were not spread over the nodes"
        await asyncio.to_thread(ray_nodes.remove_node, doomed, allow_graceful=False)
        done = await steps
        assert [tokens for tokens, _ in done] == [TOKENS] * 9
        assert not {worker for _, worker in done} & victim
        status = await see(client, lambda status: "127.0.0.10" not in hosts(status), "the lost node is off the books")
        assert not {member.name for member in status.members} & victim

        drained = workers_at(status, "127.0.0.11")
        started = asyncio.Semaphore(0)
        steps = asyncio.create_task(run_steps(client, 4, TOKENS, started.release))
        for _ in range(4):
            await started.acquire()
        command = [sys.executable, "-m", "pbkv_cluster.cli", "node", "drain", "127.0.0.11", "--cluster", name]
        drain = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=SOON_S)
        assert drain.returncode == 0, drain.stderr
        done = await steps
        assert [tokens for tokens, _ in done] == [TOKENS] * 4
        status = await client.status()
        assert hosts(status) == {"127.0.0.2": "serving", "127.0.0.11": "drained"}
        await see(client, lambda status: not workers_at(status, "127.0.0.11"), "the drained node's workers have left")
        assert not {member.name for member in status.members} & drained
        assert {worker for _, worker in await run_steps(client, 2, TOKENS, started.release)} == workers_at(status, "127.0.0.2")
