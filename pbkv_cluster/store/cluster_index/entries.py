"""Directory entries, one for each member or workflow of a cluster, and their JSON."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Generic, TypeVar

from pydantic import AfterValidator, AllowInfNan, Field, TypeAdapter, ValidationError

from pbkv_cluster.core import checks
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.core.workflow.step_graph import StepGraph

E = TypeVar("E")

OUR_ENGINE = "pbkv"
MAX_ENTRY_BYTES = 4 << 20  # a declared step graph is the largest part
MAX_PROBLEMS = 16  # of one member
MAX_REASONS = 64  # of one member
MAX_PROBLEM_CHARACTERS = 1000
_MOST = 1 << 53


def _id(value: str) -> str:
    return checks.required_name("id", value)


def _address(value: str) -> str:
    return str(parse_address("address", value))


def _optional_address(value: str) -> str:
    return _address(value) if value else ""


# What the fields of an entry must be to be believed; checked where an entry is read.
_Id = Annotated[str, AfterValidator(_id)]
_Problem = Annotated[str, Field(max_length=MAX_PROBLEM_CHARACTERS)]
_Name = Annotated[str, Field(max_length=checks.MAX_NAME_BYTES)]
_Address = Annotated[str, AfterValidator(_address)]  # host:port
_OptionalAddress = Annotated[str, AfterValidator(_optional_address)]
_Count = Annotated[int, Field(ge=0, le=_MOST)]
_Positive = Annotated[int, Field(ge=1, le=_MOST)]
_Seconds = Annotated[float, AllowInfNan(False), Field(ge=0, le=1e12)]


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """A GPU worker. Its incarnation differs each time that its process starts."""

    worker_id: _Id
    incarnation: _Id
    node_id: _Name
    address: _Address  # of its gRPC server
    pid: _Count
    namespace: Namespace  # of the blocks that it holds
    vocab_size: _Positive
    max_context_tokens: _Positive
    gpu_blocks: _Count
    host_blocks: _Count
    block_bytes: _Count  # 0: not known
    engine: _Name = OUR_ENGINE  # whose engine runs its steps, with the version where it is not ours
    output_address: _OptionalAddress = ""  # where clients take the output of their steps; empty: nowhere
    reads_siblings: bool = False  # it loads blocks from the host memory of the node's other workers
    reads_peers: bool = False  # it loads blocks from the host memory of other nodes


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """A machine with a host store."""

    node_id: _Id
    host: _Name
    address: _Address  # of its host store
    arena_bytes: _Count
    peer_address: _Address  # of the server of its blocks
    peer_token: Annotated[str, Field(pattern="^([0-9a-f]{2})+$")] = field(repr=False)  # which readers of blocks must know


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A process of which a cluster has one, such as the predictor."""

    name: _Id
    address: _Address  # of its gRPC server
    pid: _Count


@dataclass(frozen=True, slots=True)
class GatewayEntry:
    """A gateway. Its incarnation differs each time that its process starts."""

    name: _Id
    incarnation: _Id
    node_id: _Name
    address: _Address  # of its gRPC server
    http_address: Annotated[str, Field(max_length=checks.MAX_NAME_BYTES)]  # host:port of its HTTP API; empty: not served
    pid: _Count


@dataclass(frozen=True, slots=True)
class ProblemsEntry:
    """What does not work as it should at a member that serves nevertheless, in words for people; and what it has counted."""

    member: _Id
    problems: Annotated[tuple[_Problem, ...], Field(max_length=MAX_PROBLEMS)] = ()
    reasons: Annotated[dict[_Name, _Count], Field(max_length=MAX_REASONS)] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndpointEntry:
    """Where a process serves its metrics."""

    member: _Id
    kind: _Id  # such as worker
    node_id: _Name
    address: _Address  # of its HTTP server


@dataclass(frozen=True, slots=True)
class MemberEntry:
    """A member as the process that started the cluster sees it, whether the member serves or not."""

    name: str
    up: bool
    restarts: int
    last_failure: str  # why it ended last, or cannot start again; empty: it never has


class NodeState(StrEnum):
    """What a node does in the cluster."""

    STARTING = "starting"  # its members are being started
    SERVING = "serving"
    DRAINING = "draining"  # it gets no new steps; its members end when the running ones have, or when the time is up
    DRAINED = "drained"  # none of its members is left
    UNUSED = "unused"  # it has nothing that a worker could run on


@dataclass(frozen=True, slots=True)
class NodeStateEntry:
    """A node as the process that started the cluster sees it."""

    node_id: _Id
    host: _Name
    state: NodeState
    reason: _Name = ""  # why it is drained or unused


@dataclass(frozen=True, slots=True)
class NodeRequest:
    """What an operator wants of a node, until the process that started the cluster has obeyed it."""

    node_id: _Id
    drain: bool  # false: it is to serve again
    reason: _Name = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """The gateway that holds a workflow: it alone numbers the steps, and tells the workers and the predictor of them."""

    gateway: _Id  # its name
    incarnation: _Id
    address: _Address


@dataclass(frozen=True, slots=True)
class WorkflowEntry:
    """A running workflow. It ends after `lease_s` seconds of silence."""

    workflow_id: _Id
    holder: Holder
    taken: _Count  # times that another gateway, or another incarnation, has taken the workflow over
    workload: _Name
    tenant: _Name
    lease_s: _Seconds
    started_at: _Seconds  # since the epoch
    steps: _Count
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
        if len(payload) > MAX_ENTRY_BYTES:
            raise MalformedEntry(f"it has {len(payload):,} bytes, more than {MAX_ENTRY_BYTES:,}")
        try:
            return self._adapter.validate_json(payload, strict=True)
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, each['loc'])) or 'entry'}: {each['msg']}" for each in error.errors())
            raise MalformedEntry("; ".join(problems)) from error
        except InvalidArgument as error:
            raise MalformedEntry(str(error)) from error
