"""Settings of a worker's engine."""

from math import inf
from typing import Literal

from pydantic import Field, field_validator, model_validator

from pbkv_cluster.core.config.section import Section

_VLLM_TOO = {"device", "gpu_memory_share", "max_batch_tokens", "max_running", "max_waiting", "threads", "type"}
_INSTEAD_WITH_VLLM = {
    "ageing_s": "waiting does not raise a step's priority",
    "allow_forced_output": "outputs cannot be replayed",
    "attention": "use vllm.args.attention_config",
    "cached_ahead_s": "steps do not wait for what is cached",
    "disk_bytes": "use a KV connector (vllm.args.kv_transfer_config)",
    "disk_path": "use a KV connector (vllm.args.kv_transfer_config)",
    "gpu_blocks": "use vllm.args.num_gpu_blocks_override",
    "host_blocks": "use a KV connector (vllm.args.kv_transfer_config)",
    "order": "steps go by arrival, or by vllm.args.scheduling_policy",
    "prefill_chunk_tokens": "use vllm.args.long_prefill_token_threshold",
    "tenant_weights": "tenants have no shares",
}
"""What there is instead of settings that vLLM would not follow."""


class EngineConfig(Section):
    """The engine of one worker. On workers with vLLM, only the settings that say so count, and `vllm.args` has the rest."""

    type: Literal["pbkv", "vllm", "mixed"] = Field(
        "pbkv",
        description="whose engine the workers run: this project's, vLLM's, or some of each node's workers vLLM's (mixed)",
    )
    device: str = Field(
        "auto", description="torch device; auto: cuda if there is one, otherwise cpu (vLLM: only how many workers a node gets)"
    )
    attention: str = Field("auto", description="attention back end; auto: the fastest one for the device")
    gpu_blocks: int = Field(0, ge=0, description="blocks of 16 tokens in the GPU pool; 0: as many as gpu_memory_share allows")
    gpu_memory_share: float = Field(
        0.85,
        gt=0,
        le=1,
        description="share of the GPU's memory for weights and pool (on a CPU: a quarter of this share, of free host memory); vLLM, too",
    )
    host_blocks: int = Field(
        -1,
        ge=-1,
        description="blocks in the host tier, which on a GPU needs the extra `gpu`; -1: twice gpu_blocks, or what there is room for "
        "(host_store.memory_share)",
    )
    disk_path: str = Field("", description="folder for the file of each worker's disk tier, on a disk that is local and fast")
    disk_bytes: int = Field(0, ge=0, description="bytes of that file, taken at the start; 0: no disk tier")
    verify_share: float = Field(
        1.0, ge=0, le=1, description="share of blocks loaded from host memory that are compared with their checksum"
    )
    copies: Literal["auto", "kernel", "batch"] = Field("auto", description="how a GPU copies blocks; auto: the faster way")
    load_by_layer: bool = Field(
        True, description="let a step begin while what it loads from host memory arrives, layer by layer"
    )
    read_siblings: bool = Field(
        True,
        description="fetch blocks from host memory of the node's other workers, which shelters what leaves this one's, too",
    )
    read_peers: bool = Field(True, description="fetch blocks from the host memory of other nodes")
    max_batch_tokens: int = Field(2048, ge=16, description="most tokens in one forward pass; vLLM, too")
    prefill_chunk_tokens: int = Field(1024, ge=16, description="most tokens of one prompt in one forward pass")
    max_running: int = Field(64, ge=1, description="most sequences that run at once; vLLM, too")
    max_waiting: int = Field(1024, ge=1, description="most sequences in the queue; further steps are refused; vLLM, too")
    order: Literal["cached", "arrival"] = Field(
        "cached",
        description="which of a tenant's waiting steps go first: those with more of their prompt cached, or those that came first",
    )
    cached_ahead_s: float = Field(
        30.0,
        ge=0,
        description="order `cached`: seconds of waiting that a step whose whole prompt is cached need not have waited",
    )
    ageing_s: float = Field(10.0, ge=0, description="seconds of waiting that weigh as much as one level of priority")
    tenant_weights: str = Field(
        "", description="shares of tenants while several wait, as TENANT=WEIGHT,TENANT=WEIGHT; all others have weight 1"
    )
    hidden_dims: int = Field(
        64,
        ge=0,
        le=512,
        description="values of a step's projected hidden state that are sent to the predictor; 0: none is sent",
    )
    threads: int = Field(1, ge=1, description="torch threads of a worker on a CPU; vLLM, too")
    allow_forced_output: bool = Field(False, description="accept sampling.forced_output, which replays recorded workflows")

    @field_validator("tenant_weights")
    @classmethod
    def _has_weights(cls, value: str) -> str:
        parse_weights(value)
        return value

    @model_validator(mode="after")
    def _chunk_fits_batch(self) -> "EngineConfig":
        if self.type != "vllm" and self.prefill_chunk_tokens > self.max_batch_tokens:
            raise ValueError("prefill_chunk_tokens must not exceed max_batch_tokens")
        return self

    @model_validator(mode="after")
    def _disk_has_a_place(self) -> "EngineConfig":
        if self.type == "vllm":
            return self
        if self.disk_bytes and not self.disk_path:
            raise ValueError("disk_bytes needs disk_path, the folder that the disk tier's files go to")
        if self.disk_bytes and not self.host_blocks:
            raise ValueError("disk_bytes needs a host tier, through which blocks go to the disk: host_blocks must not be 0")
        return self

    def check_for_vllm(self) -> None:
        """Checks that nothing is set which vLLM would not do where a step expects it.

        Raises:
            ValueError: something is; names it.
        """
        if self.type == "mixed":  # the rest is for the workers with our engine
            if self.allow_forced_output:
                raise ValueError("engine.allow_forced_output is for engine.type = pbkv; with mixed, a step may go to vLLM")
            return
        for name, field in type(self).model_fields.items():
            if name not in _VLLM_TOO and getattr(self, name) != field.default:
                instead = _INSTEAD_WITH_VLLM.get(name, "there is nothing like it")
                raise ValueError(f"engine.{name} is for engine.type = pbkv; with vllm, {instead}")


def parse_weights(text: str) -> dict[str, float]:
    """Weights by tenant; a ValueError says what is wrong."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        tenant, _, number = part.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not tenant or not 0 < weight < inf:
            raise ValueError(f"must be TENANT=WEIGHT,TENANT=WEIGHT with weights above 0, got {part!r}")
        if tenant in found:
            raise ValueError(f"names {tenant!r} twice")
        found[tenant] = weight
    return found
