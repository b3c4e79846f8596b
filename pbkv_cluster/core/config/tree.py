"""The configuration tree. Each field's description is its documentation; `pbkv config show` prints them with their values."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ClusterConfig(_Section):
    """What runs, and where."""

    name: str = Field(
        "pbkv", min_length=1, pattern=r"^[\w.-]+$", description="prefix of everything this cluster keeps in Redis"
    )
    address: str = Field("", description="address of a Ray cluster to join; empty starts one on this machine")
    host: str = Field(
        "", description="address the services bind and advertise; empty: loopback, or the node's own in a joined cluster"
    )
    workers: int = Field(1, ge=1, le=1024, description="GPU workers")
    ray_node_ip: str = Field(
        "127.0.0.2", description="address of a Ray cluster started here (127.0.0.1 would be rewritten by Ray)"
    )
    start_timeout_s: float = Field(180.0, gt=0, description="seconds that every process may take to become ready")


class ModelConfig(_Section):
    """The model that every worker loads."""

    path: str = Field(
        "", description="local directory or hub id of a decoder-only model; empty: a small random one, for trying out"
    )
    revision: str = Field("main", min_length=1, description="revision on the hub")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of weights and KV; auto: float32 on a CPU, else the checkpoint's"
    )
    max_context_tokens: int = Field(0, ge=0, description="longest prompt and output together; 0: what the model was made for")


class EngineConfig(_Section):
    """The engine of one worker."""

    device: str = Field("auto", description="torch device; auto: cuda where there is one, else cpu")
    attention: str = Field("auto", description="attention over the block pool; auto: the fastest the device has")
    gpu_blocks: int = Field(0, ge=0, description="blocks of 16 tokens in the GPU pool; 0: what gpu_memory_share allows")
    gpu_memory_share: float = Field(
        0.85,
        gt=0,
        le=1,
        description="share of the device's memory for weights and pool (of free host memory: a quarter of it, on a CPU)",
    )
    host_blocks: int = Field(-1, ge=-1, description="blocks in the host tier; 0: none, -1: twice gpu_blocks")
    max_batch_tokens: int = Field(2048, ge=16, description="tokens in one forward pass")
    prefill_chunk_tokens: int = Field(1024, ge=16, description="tokens of one prompt in one forward pass")
    max_running: int = Field(64, ge=1, description="sequences in one batch")
    max_waiting: int = Field(1024, ge=1, description="sequences in the queue; beyond, steps are refused")
    hidden_dims: int = Field(
        64, ge=0, le=512, description="values of a step's hidden state that the predictor gets; 0: it gets none"
    )
    threads: int = Field(1, ge=1, description="torch threads of a worker on a CPU")
    allow_forced_output: bool = Field(False, description="accept sampling.forced_output, to replay recorded workflows")

    @model_validator(mode="after")
    def _chunk_fits_batch(self) -> "EngineConfig":
        if self.prefill_chunk_tokens > self.max_batch_tokens:
            raise ValueError("prefill_chunk_tokens must not exceed max_batch_tokens")
        return self


class CacheConfig(_Section):
    """Which blocks stay."""

    policy: str = Field("pbkv", min_length=1, description="reuse policy of the GPU tier, by name or package.module:Class")
    host_policy: str = Field("retired-lru", min_length=1, description="reuse policy of the host tier")
    gamma: float = Field(0.7, gt=0, le=1, description="discount of the reuse score for each further step")
    forecast_half_life_s: float = Field(60.0, gt=0, description="age at which a forecast counts half")
    hit_overhead: float = Field(
        2.0,
        gt=0,
        description="policy `pbkv`: soonest that a hit can come about, at half a minute a step; less favours what may be used soon",
    )
    shared_prior: float = Field(
        0.002,
        gt=0,
        le=1,
        description="chance that a new workflow uses a block of one that has ended, before anyone did (`pbkv`)",
    )
    guard: bool = Field(True, description="evict by LRU while the policy would hit less; policy `lru` needs none")
    guard_floor: float = Field(0.98, gt=0, le=1, description="share of LRU's hits below which the guard falls back to LRU")
    guard_steps: int = Field(200, ge=10, description="steps that the guard remembers: one that is as old weighs 1/e")
    lfu_half_life_s: float = Field(600.0, gt=0, description="age at which a use counts half, under policy `lfu`")
    continuum_benefit_s: float = Field(
        30.0,
        gt=0,
        description="seconds of holding blocks that a hit on them is worth, under policy `continuum`",
    )


class PredictorConfig(_Section):
    """The predictor service."""

    model: str = Field(
        "mixture", min_length=1, description="predictor: mixture, one expert alone, or a path package.module:Class"
    )
    experts: str = Field(
        "context-tree,linear,step-graph", min_length=1, description="experts of the mixture, by name or package.module:Class"
    )
    max_agents: int = Field(
        256, ge=8, le=65_536, description="agents of one workload that are told apart; beyond, the longest unseen leave"
    )
    horizon: int = Field(3, ge=1, le=16, description="steps that a forecast looks ahead (K)")
    smoothing: float = Field(0.1, gt=0, description="pseudo-count of unseen transitions")
    network_positions: bool = Field(
        True, description="expert pbkv knows how long ago each step was; false is the paper's network"
    )
    broadcast_interval_s: float = Field(0.002, gt=0, description="forecasts that change within this time travel together")
    access_interval_s: float = Field(
        2.0, gt=0, description="seconds between two updates of what workers know of how workflows use their blocks"
    )
    state_path: str = Field(
        "", description="file that keeps what has been learnt; empty: it is kept for as long as the cluster runs"
    )
    subscriber_queue: int = Field(1024, ge=1, description="forecasts waiting for one subscriber; beyond, it is sent a snapshot")


class GatewayConfig(_Section):
    """The front door."""

    port: int = Field(26100, ge=0, le=65535, description="port that clients connect to; 0 takes a free one")
    max_steps: int = Field(4096, ge=1, description="steps in flight; beyond, they are refused")
    max_workflows: int = Field(100_000, ge=1, description="open workflows; beyond, they are refused")
    workflow_lease_s: float = Field(
        600.0, gt=0, description="silence after which a workflow is ended, unless it asks for another"
    )
    retry_limit: int = Field(3, ge=0, description="workers that may be lost under one step before it fails")
    worker_wait_s: float = Field(60.0, gt=0, description="seconds that a step waits while no worker is reachable")
    available_blocks: int = Field(2_000_000, ge=0, description="block keys remembered to tell what an infinite cache would hit")


class RedisConfig(_Section):
    """The cluster-wide index."""

    url: str = Field("", description="of a running server; empty starts one for this cluster")
    lease_s: float = Field(10.0, gt=0, description="silence after which a node, a worker and its blocks leave the index")
    flush_interval_s: float = Field(0.05, gt=0, description="block changes within this time are announced together")


class HostStoreConfig(_Section):
    """The host memory of each node."""

    memory_share: float = Field(
        0.25, gt=0, le=0.9, description="share of the node's memory that its workers may lease for their host tiers"
    )
    lease_s: float = Field(30.0, gt=0, description="silence after which a worker's host memory is given to others")


class OtelConfig(_Section):
    """Workflow events from OpenTelemetry spans, for applications that are not clients of the gateway."""

    enabled: bool = Field(False, description="receive spans (OTLP) and tell the predictor what happens in their workflows")
    port: int = Field(4317, ge=0, le=65535, description="of OTLP over gRPC; 0 takes a free one")
    http_port: int = Field(4318, ge=-1, le=65535, description="of OTLP over HTTP; 0 takes a free one, -1: none")
    reorder_s: float = Field(
        2.0, ge=0, description="seconds that a span waits for earlier ones; more than senders differ in how long they batch"
    )
    parent_wait_s: float = Field(
        10.0, ge=0, description="seconds that a model call without an agent's name waits for the span around it that has one"
    )
    silence_s: float = Field(600.0, gt=0, description="silence after which a workflow is ended")
    max_workflows: int = Field(10_000, ge=1, description="workflows followed; beyond, the one that was silent longest is ended")
    max_spans: int = Field(200_000, ge=1, description="spans remembered, to know duplicates and who called whom")
    max_waiting_spans: int = Field(4096, ge=1, description="spans of one workflow that wait; beyond, they are refused")


class Config(_Section):
    """Everything that can be set."""

    cluster: ClusterConfig = ClusterConfig()
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    cache: CacheConfig = CacheConfig()
    predictor: PredictorConfig = PredictorConfig()
    gateway: GatewayConfig = GatewayConfig()
    redis: RedisConfig = RedisConfig()
    host_store: HostStoreConfig = HostStoreConfig()
    otel: OtelConfig = OtelConfig()
