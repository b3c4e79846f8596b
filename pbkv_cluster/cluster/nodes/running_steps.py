"""How many steps run or wait on workers, asked of the workers themselves: there may be several gateways."""

import asyncio
from collections.abc import Sequence

import grpc

from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import worker_pb2, worker_pb2_grpc

_TIMEOUT_S = 2.0


def running_steps(addresses: Sequence[str]) -> int:
    """The steps on the workers at these addresses. One that does not answer counts as one step: nobody knows."""
    return sum(asyncio.run(_ask_all(addresses)))


async def _ask_all(addresses: Sequence[str]) -> list[int]:
    return await asyncio.gather(*map(_ask, addresses))


async def _ask(address: str) -> int:
    async with connect(address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        try:
            status = await stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return 1
        return int(status.running + status.waiting)
