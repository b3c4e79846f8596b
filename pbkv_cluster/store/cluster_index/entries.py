"""What the directory knows about each member of a cluster, and how it is written down."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.step_graph import StepGraph

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """A GPU worker. `incarnation` differs each time that its process starts."""

    worker_id: str
    incarnation: str
    node_id: str
    address: str  # host:port of its gRPC server
    pid: int
    namespace: Namespace  # of the blocks that it holds
    vocab_size: int
    max_context_tokens: int
    gpu_blocks: int
    host_blocks: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """A machine with a host store."""

    node_id: str
    host: str
    address: str  # host:port of its host store
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A process that a cluster has one of: the gateway, the predictor."""

    name: str
    address: str  # host:port of its gRPC server
    pid: int


@dataclass(frozen=True, slots=True)
class WorkflowEntry:
    """A running workflow. It is gone after `lease_s` seconds without a step."""

    workflow_id: str
    workload: str
    tenant: str
    lease_s: float
    started_at: float  # seconds since the epoch
    steps: int
    step_graph: StepGraph | None = None  # that the client has declared


class Malformed(Exception):
    """Bytes that are not a record of the expected kind."""


class EntryCodec(Generic[R]):
    """Records of one kind as JSON. Fields that are not known are ignored, as a newer version may write them."""

    def __init__(self, kind: type[R]) -> None:
        self._adapter = TypeAdapter(kind)

    def encode(self, record: R) -> bytes:
        return self._adapter.dump_json(record)

    def decode(self, payload: bytes) -> R:
        """Raises Malformed."""
        try:
            return self._adapter.validate_json(payload, strict=True)
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, each['loc'])) or 'record'}: {each['msg']}" for each in error.errors())
            raise Malformed("; ".join(problems)) from error
        except InvalidArgument as error:
            raise Malformed(str(error)) from error
