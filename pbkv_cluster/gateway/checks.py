"""Checks of request fields. Each raises `InvalidArgument` that names the field as on the wire."""

import math

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.step_graph import StepGraph

MAX_NAME_BYTES = 256
MIN_LEASE_S = 0.001
MAX_LEASE_S = 7 * 86_400.0


def name(field: str, value: str) -> str:
    """A name that may be left out: at most 256 bytes of UTF-8."""
    size = len(value.encode())
    if size > MAX_NAME_BYTES:
        raise InvalidArgument(field, f"at most {MAX_NAME_BYTES} bytes, got {size}")
    return value


def required_name(field: str, value: str) -> str:
    """A name that must be given."""
    if not value:
        raise InvalidArgument(field, "must not be empty")
    return name(field, value)


def seconds(field: str, value: float, limit: float = math.inf) -> float:
    """A finite duration of at least 0 and at most `limit` seconds."""
    if not math.isfinite(value) or not 0.0 <= value <= limit:
        bound = "" if limit == math.inf else f" and at most {limit:g}"
        raise InvalidArgument(field, f"must be a finite number of seconds, at least 0{bound}, got {value:g}")
    return value


def lease(field: str, value: float) -> float:
    """The duration of a lease; 0 stands for the default."""
    if 0.0 < value < MIN_LEASE_S:
        raise InvalidArgument(field, f"must be 0, for the default, or at least {MIN_LEASE_S:g} s, got {value:g}")
    return seconds(field, value, MAX_LEASE_S)


def step_graph(graph: StepGraph) -> None:
    """The agents of a step graph are names."""
    for position, node in enumerate(graph.nodes):
        name(f"step_graph.nodes[{position}].agent_id", node.agent)
