"""The nodes of the Ray cluster, as Ray sees them now."""

import math
import time
from dataclasses import dataclass

_VLLM = "vllm"  # a resource that nodes may be given: how many of their workers are to run vLLM


@dataclass(frozen=True, slots=True)
class RayNode:
    """A machine that runs a raylet."""

    node_id: str
    host: str
    gpus: int
    vllm_workers: int = 0  # that it is meant for, by its Ray resource


def living() -> list[RayNode]:
    """The nodes that live, the draining ones among them, in the order in which they joined as far as Ray tells it."""
    import ray

    return [
        RayNode(
            node["NodeID"],
            node["NodeManagerAddress"],
            int(node["Resources"].get("GPU", 0)),
            int(node["Resources"].get(_VLLM, 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def draining() -> dict[str, float]:
    """Seconds until Ray ends each node that it drains, by id; infinite where it has set no time."""
    from ray._private.state import state  # there is no public way

    now = time.time()
    return {
        str(node): deadline_ms / 1000 - now if deadline_ms else math.inf
        for node, deadline_ms in state.get_draining_nodes().items()
    }


def this_node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def this_node_address() -> str:
    """Address under which the other nodes reach this one."""
    import ray

    return str(ray.util.get_node_ip_address())
