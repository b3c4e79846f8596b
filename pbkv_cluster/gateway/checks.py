"""Checks of a client's request. Each raises `InvalidArgument` with the field's name as on the wire."""

from pbkv_cluster.core.checks import name, not_empty, required_name, seconds
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.step_graph import StepGraph

__all__ = ["lease", "name", "not_empty", "required_name", "seconds", "step_graph"]

MIN_LEASE_S = 0.001
MAX_LEASE_S = 7 * 86_400.0


def lease(field: str, value: float) -> float:
    """The duration of a workflow's lease, in seconds; 0 stands for the default."""
    if 0.0 < value < MIN_LEASE_S:
        raise InvalidArgument(field, f"must be 0, for the default, or at least {MIN_LEASE_S:g} s, got {value:g}")
    return seconds(field, value, MAX_LEASE_S)


def step_graph(graph: StepGraph) -> None:
    """The agents of a step graph are names."""
    for position, node in enumerate(graph.nodes):
        name(f"step_graph.nodes[{position}].agent_id", node.agent)
