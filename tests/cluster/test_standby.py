"""A member that is killed goes on in the standby's process, which is replaced; without a standby it starts in a new one."""

import asyncio
import os
import signal

import psutil

from pbkv_cluster.client import AsyncClient
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.errors import Unavailable
from tests.polling import eventually, wait_for

BACK_S = 120.0


def standby(cluster: LocalCluster, *former: int) -> int:
    """Waits for a standby that is ready and none of the former ones. Returns its process id."""
    wait_for(lambda: cluster.standby_pid not in (0, *former), BACK_S)
    return cluster.standby_pid


def kill(cluster: LocalCluster, *pids: int) -> None:
    """Kills processes, and waits until the cluster has noticed: no member and no standby has one of them."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not {*cluster.pids(BACK_S).values(), cluster.standby_pid} & {*pids}, BACK_S)


async def run_step(cluster: LocalCluster) -> None:
    async def done() -> bool:
        try:
            async with AsyncClient(cluster.gateway_address) as client, await client.start_workflow() as workflow:
                return bool((await workflow.run(agent="a", prompt=[5] * 20, max_tokens=1)).token_ids)
        except Unavailable:  # the gateway serves, and has not found a worker yet
            return False

    await eventually(done, BACK_S)


def test_what_runs_no_model_loads_no_torch(cluster: LocalCluster) -> None:
    members = {name: pid for name, pid in cluster.pids().items() if not name.startswith("worker-")}
    torch = {
        name: any("libtorch" in mapped.path for mapped in psutil.Process(pid).memory_maps())
        for name, pid in {**members, "standby": standby(cluster), "worker": cluster.pids()["worker-0"]}.items()
    }
    assert torch == {name: name == "worker" for name in torch}


def test_members_do_not_yield_to_other_processes(cluster: LocalCluster) -> None:
    """Ray runs processes at niceness 15 unless it is told otherwise."""
    pids = [*cluster.pids().values(), standby(cluster)]
    assert {psutil.Process(pid).nice() for pid in pids} == {psutil.Process().nice()}


async def test_the_standby_becomes_the_killed_gateway(cluster: LocalCluster) -> None:
    ready = await asyncio.to_thread(standby, cluster)
    before = await asyncio.to_thread(cluster.pids)
    await asyncio.to_thread(kill, cluster, before["gateway"])
    assert await asyncio.to_thread(cluster.pids) == before | {"gateway": ready}
    await run_step(cluster)
    await asyncio.to_thread(standby, cluster, ready)


async def test_the_standby_becomes_the_killed_predictor(cluster: LocalCluster) -> None:
    ready = await asyncio.to_thread(standby, cluster)
    before = await asyncio.to_thread(cluster.pids)
    await asyncio.to_thread(kill, cluster, before["predictor"])
    assert await asyncio.to_thread(cluster.pids) == before | {"predictor": ready}
    async with AsyncClient(cluster.gateway_address) as client:

        async def found() -> bool:
            status = await client.status()
            return status.predictor_reachable and status.predictor_address == cluster.addresses["predictor"]

        await eventually(found, BACK_S)


async def test_a_killed_standby_is_replaced(cluster: LocalCluster) -> None:
    ready = await asyncio.to_thread(standby, cluster)
    before = await asyncio.to_thread(cluster.pids)
    await asyncio.to_thread(kill, cluster, ready)
    await asyncio.to_thread(standby, cluster, ready)
    assert await asyncio.to_thread(cluster.pids) == before


async def test_a_gateway_that_dies_with_the_standby_starts_in_a_new_process(cluster: LocalCluster) -> None:
    ready = await asyncio.to_thread(standby, cluster)
    gateway = (await asyncio.to_thread(cluster.pids))["gateway"]
    await asyncio.to_thread(kill, cluster, ready, gateway)
    await run_step(cluster)
    after = (await asyncio.to_thread(cluster.pids))["gateway"]
    await asyncio.to_thread(standby, cluster, ready, gateway, after)


async def test_of_members_that_die_together_one_gets_the_standby(cluster: LocalCluster) -> None:
    ready = await asyncio.to_thread(standby, cluster)
    before = await asyncio.to_thread(cluster.pids)
    names = ("gateway", "predictor", "host-store-0", "otel")
    await asyncio.to_thread(kill, cluster, *(before[name] for name in names))
    await run_step(cluster)
    after = await asyncio.to_thread(cluster.pids)
    assert [after[name] for name in names].count(ready) == 1
    assert len(set(after.values())) == len(before)
    await asyncio.to_thread(standby, cluster, ready)
