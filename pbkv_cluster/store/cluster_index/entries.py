"""Directory entries, one for each member or workflow of a cluster, and their JSON."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.step_graph import StepGraph

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """A GPU worker. Its incarnation differs each time that its process starts."""

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
    """A process of which a cluster has one: the gateway, the predictor."""

    name: str
    address: str  # host:port of its gRPC server
    pid: int


@dataclass(frozen=True, slots=True)
class MemberEntry:
    """A member as the process that started the cluster sees it, whether the member serves or not."""

    name: str
    up: bool
    restarts: int
    last_failure: str  # why it ended last, or cannot start again; empty: it never has


@dataclass(frozen=True, slots=True)
class WorkflowEntry:
    """A running workflow. It ends after `lease_s` seconds of silence."""

    workflow_id: str
    workload: str
    tenant: str
    lease_s: float
    started_at: float  # seconds since the epoch
    steps: int
    step_graph: StepGraph | None = None  # as declared by the client


class MalformedEntry(Exception):
    """Bytes that are not an entry of the expected kind."""


class EntryCodec(Generic[E]):
    """Entries of one kind as JSON. Unknown fields are ignored: a newer version may have written them."""

    def __init__(self, kind: type[E]) -> None:
        self._adapter = TypeAdapter(kind)

    def encode(self, entry: E) -> bytes:
        return self._adapter.dump_json(entry)

    def decode(self, payload: bytes) -> E:
        """Raises MalformedEntry."""
        try:
            return self._adapter.validate_json(payload, strict=True)
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, each['loc'])) or 'entry'}: {each['msg']}" for each in error.errors())
            raise MalformedEntry("; ".join(problems)) from error
        except InvalidArgument as error:
            raise MalformedEntry(str(error)) from error
