"""What the rest of the cluster needs to know about a running worker."""

from dataclasses import dataclass

from pbkv_cluster.core.blocks import Namespace


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the rest of the cluster needs to know about a running worker."""

    address: str
    namespace: Namespace  # without a tenant
    vocabulary: int
    max_context: int  # tokens
    gpu_blocks: int
    host_blocks: int
    block_bytes: int  # 0: not known
    engine: str = "pbkv"  # whose engine runs its steps, with the version where it is not ours
    output_address: str = ""  # where clients take the output of their steps; empty: nowhere
    reads_siblings: bool = False  # loads blocks from the host memory of the node's other workers
    reads_peers: bool = False  # loads blocks from the host memory of other nodes
