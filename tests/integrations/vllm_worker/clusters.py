"""What tests of clusters with vLLM ask them."""

import contextlib
import random

import psutil

from pbkv_cluster.client import AsyncClient
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.rpc.channel import connect as channel_to
from pbkv_cluster.rpc.v1 import worker_pb2, worker_pb2_grpc
from pbkv_cluster.store.cluster_index import Directory, WorkerEntry, connect
from tests.polling import eventually


def prompt(seed: int, length: int) -> list[int]:
    """Random tokens of the model's vocabulary."""
    return random.Random(seed).choices(range(10, 4000), k=length)


async def entries(cluster: LocalCluster) -> list[WorkerEntry]:
    """The workers, in the directory."""
    async with contextlib.AsyncExitStack() as stack:
        redis = connect(cluster.redis_url)
        stack.push_async_callback(redis.aclose)
        return await Directory(redis, cluster.name, 60.0).workers()


async def both_up(client: AsyncClient) -> None:
    """Waits until two workers serve, and hear the predictor."""

    async def up() -> bool:
        workers = (await client.status()).workers
        return len(workers) == 2 and all(each.reachable and each.predictor_reachable for each in workers)

    await eventually(up, 400)


async def batches(cluster: LocalCluster) -> int:
    """Of all engines, by their own statuses."""
    total = 0
    for entry in await entries(cluster):
        async with channel_to(entry.address) as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            total += (await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest(), timeout=10)).engine_steps
    return total


def engine_of(pid: int) -> int:
    """vLLM's engine core below a worker's process."""
    return next(each.pid for each in psutil.Process(pid).children(recursive=True) if each.name() == "VLLM::EngineCore")
