"""Where the parts of a cluster are, for `pbkv status`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1 import workflow_pb2


def address_lines(status: "workflow_pb2.GetClusterStatusResponse") -> Iterator[str]:
    """The HTTP API of a gateway that tells of no others, logs, pages and metrics, one line each, as far as there are any."""
    if status.http_address and not status.gateways:
        url = f"{http_scheme()}://{status.http_address}"
        yield f"OpenAI's API at {url}/v1, Anthropic's at {url}"
    if status.log_path:
        yield f"logs in {status.log_path.rpartition('/')[0]} of each node, the gateway's in {status.log_path}"
    for name, url in (("dashboard", status.dashboard_url), ("metrics (Prometheus, http_sd)", status.discovery_url)):
        if url:
            yield f"{name}: {url}"


def http_scheme() -> str:
    """Of the cluster's HTTP APIs. All ports of a cluster speak TLS, or none: they do if the gateway has been asked over it."""
    from pbkv_cluster.rpc.security import this_process

    return "http" if this_process().access.tls is None else "https"
