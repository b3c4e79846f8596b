"""What the scheduler's connector and the workers' tell each other."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from pbkv_cluster.core.blocks import Namespace


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Consecutive blocks of a request that are loaded before it goes on."""

    request_id: str
    keys: tuple[bytes, ...]
    block_ids: tuple[int, ...]  # of vLLM's pool, where they go


@dataclass(frozen=True, slots=True)
class SavePlan:
    """Consecutive blocks that are full once the step has run."""

    keys: tuple[bytes, ...]
    parent: bytes | None  # key of the block before the first
    block_ids: tuple[int, ...]


@dataclass
class StepPlan(KVConnectorMetadata):
    """From the scheduler to every worker, once a step."""

    loads: list[LoadPlan] = field(default_factory=list)
    saves: list[SavePlan] = field(default_factory=list)
    computes: bool = True  # false: the step only waits for loads
    clear: bool = False  # drop all blocks of this engine's regions first


@dataclass
class WorkerReport(KVConnectorWorkerMetadata):
    """From a worker to the scheduler: blocks that have come to its region or left it, in order. Only rank 0 sends any."""

    changes: list[tuple[bytes, bool]]  # key, whether it was stored

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "WorkerReport":
        """The reports of several workers as one."""
        assert isinstance(other, WorkerReport)
        return WorkerReport(self.changes + other.changes)


@dataclass
class WorkerIntroduction(KVConnectorHandshakeMetadata):
    """From a worker to the scheduler, once the KV cache has its layout."""

    namespace: Namespace
    block_bytes: int
