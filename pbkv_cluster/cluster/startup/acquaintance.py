"""Waits until every member of a new cluster knows every other, so that the first steps find all workers."""

import time

import grpc

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.rpc.channel import connect_blocking
from pbkv_cluster.rpc.v1 import workflow_pb2, workflow_pb2_grpc

_POLL_S = 0.05
_CALL_TIMEOUT_S = 5.0

Status = workflow_pb2.GetClusterStatusResponse


def await_acquaintance(gateway_address: str, workers: int, timeout_s: float) -> None:
    """Asks the gateway until it has reached all workers, the predictor and the index, and each worker the predictor.

    Raises:
        StartupError: that takes longer than `timeout_s` seconds; says who does not know whom.
    """
    deadline = time.monotonic() + timeout_s
    with connect_blocking(gateway_address) as channel:
        stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
        while True:
            try:
                status = stub.GetClusterStatus(workflow_pb2.GetClusterStatusRequest(), timeout=_CALL_TIMEOUT_S)
                strangers = find_strangers(status, workers)
            except grpc.RpcError as error:
                strangers = [f"the gateway does not answer ({error})"]
            if not strangers:
                return
            if time.monotonic() >= deadline:
                raise StartupError(f"not ready in time (cluster.start_timeout_s): {'; '.join(strangers)}")
            time.sleep(_POLL_S)


def find_strangers(status: Status, workers: int) -> list[str]:
    """Who does not know whom, as phrases; empty: all `workers` and the other members know each other."""
    strangers = []
    reached = [worker for worker in status.workers if worker.reachable]
    if len(reached) < workers:
        strangers.append(f"the gateway has reached {len(reached)} of {workers} workers")
    if not status.predictor_reachable:
        strangers.append("the gateway has not reached the predictor")
    if not status.index_reachable:
        strangers.append("the gateway has not reached Redis")
    strangers += [f"{worker.worker_id} has not reached the predictor" for worker in reached if not worker.predictor_reachable]
    return strangers
