"""A running cluster, as its gateway sees it."""

import asyncio
from collections.abc import Iterator

from pbkv_cluster.cli.doctor.finding import Finding, error, ok
from pbkv_cluster.core.errors import PbkvError


def check_cluster(endpoint: str) -> Iterator[Finding]:
    """The members of the cluster whose gateway is at `endpoint`."""
    from pbkv_cluster.cli.serving.status import degraded, fetch_status

    try:
        status = asyncio.run(fetch_status(endpoint))
    except PbkvError as problem:
        yield error("cluster", str(problem), "start it with pbkv serve, or correct --endpoint (pbkv clusters lists those here)")
        return
    problems = degraded(status)
    for text in problems:
        yield error("cluster", text, "pbkv status and the log of the member say more; it is restarted by itself")
    if not problems:
        nodes = {worker.node_id for worker in status.workers}
        yield ok(
            "cluster", f"{status.cluster}: {len(status.workers)} workers on {len(nodes)} nodes, predictor and index reachable"
        )
