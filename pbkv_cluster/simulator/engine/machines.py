"""Cost models of real machines, calculated from public figures: a GPU and a model, `h100-14b`.

GPUs, dense 16-bit arithmetic, memory and links, by NVIDIA's data sheets: A100 80GB SXM (PCIe 4.0, NVLink 600 GB/s), H100 SXM
and H200 SXM (PCIe 5.0, NVLink 900 GB/s), L40S (PCIe 4.0, no NVLink). A link's speed is that of one direction, half of what data
sheets add up. Models by the `config.json` and the model card of Llama-3.1-8B, Qwen2.5-14B, Qwen2.5-32B (Qwen3-32B has the same
KV), and Llama-3.1-70B, in 16 bits.

Copies are taken to run in a stream of their own, and to delay compute by `_COPY_DELAY` of their time, as both compete for
memory bandwidth: a copy at 51 GB/s takes 1.5 % of an H100's 3.35 TB/s, and launches take some more. Assumed, not measured.

Of these peaks a server gets a part: `_COMPUTE`, `_MEMORY` and `_LINK` are assumed, and near what well-tuned engines report for
prefill, decode and pinned copies. `pbkv calibrate` measures instead.

A model that does not fit into one GPU runs on the smallest power of two on which its weights take at most `_WEIGHTS_MAX` of the
memory, by tensor parallelism (Shoeybi et al.: Megatron-LM, arXiv 1909.08053). They compute and read as one GPU that is so many
times as fast, each loads its part of the KV over its own link to the host, and two all-reduces a layer are added: in prefill
their bytes, in decode their latency.
"""

from dataclasses import dataclass

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.simulator.engine.cost_model import CostModel

_COMPUTE, _MEMORY, _LINK = 0.5, 0.8, 0.8  # utilisation of the peaks
_WEIGHTS_MAX = 0.85  # of the memory
_USED_MAX = 0.9  # of the memory, by weights and KV; the rest is for activations
_ALL_REDUCE_S = 1e-5  # latency of a small one; assumed
_SEQUENCE_S = 3e-5  # of each sequence in a decode, for sampling and scheduling; assumed
_COPY_DELAY = 0.1
_VALUE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peaks, by second."""

    flops: float
    memory_bytes: float
    memory_bytes_per_s: float
    host_bytes_per_s: float
    peer_bytes_per_s: float  # to the other GPUs of the machine


@dataclass(frozen=True, slots=True)
class Model:
    """A dense model."""

    name: str
    parameters: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int = 128

    @property
    def kv_bytes(self) -> int:
        """Of a token."""
        return 2 * self.layers * self.kv_heads * self.head_size * _VALUE_BYTES

    @property
    def weight_bytes(self) -> float:
        return self.parameters * _VALUE_BYTES


GPUS = {
    "a100": Gpu(312e12, 80e9, 2.039e12, 32e9, 300e9),
    "h100": Gpu(989e12, 80e9, 3.35e12, 64e9, 450e9),
    "h200": Gpu(989e12, 141e9, 4.8e12, 64e9, 450e9),
    "l40s": Gpu(362e12, 48e9, 0.864e12, 32e9, 32e9),
}
MODELS = {
    "8b": Model("Llama-3.1-8B", 8.03e9, 32, 4096, 32, 8),
    "14b": Model("Qwen2.5-14B", 14.7e9, 48, 5120, 40, 8),
    "32b": Model("Qwen2.5-32B", 32.5e9, 64, 5120, 40, 8),
    "70b": Model("Llama-3.1-70B", 70.6e9, 80, 8192, 64, 8),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """GPUs that serve one model together."""

    name: str
    gpu: Gpu
    model: Model
    gpus: int

    @property
    def gpu_blocks(self) -> int:
        """Blocks that fit beside the weights."""
        room = self.gpus * self.gpu.memory_bytes * _USED_MAX - self.model.weight_bytes
        return int(room / (self.model.kv_bytes * BLOCK_TOKENS))

    def cost(self) -> CostModel:
        """How long the machine takes."""
        gpu, model, gpus = self.gpu, self.model, self.gpus
        flops = gpus * gpu.flops * _COMPUTE
        read = gpus * gpu.memory_bytes_per_s * _MEMORY
        all_reduces = 2 * model.layers if gpus > 1 else 0
        reduced_bytes = 2 * (gpus - 1) / gpus * model.hidden * _VALUE_BYTES  # sent by each GPU in a ring, for each token
        return CostModel(
            prefill_token_s=2 * model.parameters / flops + all_reduces * reduced_bytes / (gpu.peer_bytes_per_s * _LINK),
            prefill_context_s=4 * model.layers * model.heads * model.head_size / flops,
            decode_base_s=model.weight_bytes / read + all_reduces * _ALL_REDUCE_S,
            decode_sequence_s=_SEQUENCE_S,
            decode_context_s=model.kv_bytes / read,
            host_bytes_per_s=gpus * gpu.host_bytes_per_s * _LINK,
            block_bytes=model.kv_bytes * BLOCK_TOKENS,
            copy_delay=_COPY_DELAY,
        )


def machine_names() -> list[str]:
    return [f"{gpu}-{model}" for gpu in GPUS for model in MODELS]


def machine(name: str) -> Machine:
    """A machine by its name.

    Raises:
        InvalidArgument: there is none of this name; the message lists all.
    """
    if name not in machine_names():
        raise InvalidArgument("machine", f"must be one of {', '.join(machine_names())}, got {name!r}")
    gpu, _, model = name.partition("-")
    return Machine(name, GPUS[gpu], MODELS[model], _gpus(GPUS[gpu], MODELS[model]))


def _gpus(gpu: Gpu, model: Model) -> int:
    gpus = 1
    while model.weight_bytes > _WEIGHTS_MAX * gpus * gpu.memory_bytes:
        gpus *= 2
    return gpus
