"""A new cluster is ready when its members know each other."""

import asyncio

import pytest

from pbkv_cluster.cluster.startup.acquaintance import await_acquaintance, find_strangers
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.rpc.v1 import workflow_pb2
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import running

Status = workflow_pb2.GetClusterStatusResponse


def status(*workers: tuple[bool, bool], predictor: bool = True, index: bool = True) -> Status:
    """Of workers that are reachable, and reach the predictor."""
    return Status(
        workers=[
            Status.Worker(worker_id=f"worker-{number}", reachable=reachable, predictor_reachable=reaches)
            for number, (reachable, reaches) in enumerate(workers)
        ],
        predictor_reachable=predictor,
        index_reachable=index,
    )


@pytest.mark.parametrize(
    ("seen", "strangers"),
    [
        (status((True, True), (True, True)), []),
        (status((True, True)), ["the gateway has reached 1 of 2 workers"]),
        (status((True, True), (False, True)), ["the gateway has reached 1 of 2 workers"]),
        (status((True, True), (True, False)), ["worker-1 has not reached the predictor"]),
        (
            status((True, True), (True, True), predictor=False, index=False),
            ["the gateway has not reached the predictor", "the gateway has not reached Redis"],
        ),
    ],
)
def test_whoever_does_not_know_another_is_named(seen: Status, strangers: list[str]) -> None:
    assert find_strangers(seen, 2) == strangers


async def test_readiness_waits_for_the_last_worker() -> None:
    workers = [ScriptedWorker("w0", sees_predictor=True), ScriptedWorker("w1", sees_predictor=True)]
    async with running(workers[0]) as rig:
        await rig.add_predictor()
        with pytest.raises(StartupError, match="the gateway has reached 1 of 2 workers"):
            await asyncio.to_thread(await_acquaintance, rig.address, 2, 0.0)
        waiting = asyncio.create_task(asyncio.to_thread(await_acquaintance, rig.address, 2, 60.0))
        await rig.add_worker(workers[1])
        await waiting
        assert len((await rig.status()).workers) == 2
