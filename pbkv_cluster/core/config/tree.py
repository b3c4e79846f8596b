"""The configuration tree. Each field's description is its documentation; `pbkv config show` prints them with their values."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pbkv_cluster.core.config.cache import CacheConfig
from pbkv_cluster.core.config.engine import EngineConfig
from pbkv_cluster.core.config.engines import PluginsConfig, SidecarConfig, VllmConfig
from pbkv_cluster.core.config.limits import LimitsConfig
from pbkv_cluster.core.config.monitoring import DashboardConfig, LoggingConfig, MetricsConfig, OtelConfig, TelemetryConfig
from pbkv_cluster.core.config.section import Section, checked
from pbkv_cluster.core.config.security import SecurityConfig
from pbkv_cluster.core.config.stores import HostStoreConfig, KvEventsConfig, RedisConfig
from pbkv_cluster.core.locations.addresses import check_host


class ClusterConfig(Section):
    """Which processes run, and where."""

    name: str = Field(
        "pbkv", min_length=1, pattern=r"^[\w.-]+$", description="prefix of everything this cluster keeps in Redis"
    )
    address: str = Field("", description="address of a Ray cluster to join; empty starts one on this machine")
    host: str = Field(
        "",
        description="address that the services bind and advertise; empty: loopback, or the node's own address in a joined cluster",
    )
    workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="workers on each node; 0: one for each GPU of the node, or one on the CPU if there is no GPU",
    )
    drain_timeout_s: float = Field(
        120.0,
        ge=0,
        description="seconds that running steps may take to end on a node that is drained; then they go on elsewhere",
    )
    ray_node_ip: str = Field(
        "127.0.0.2", description="address of a Ray cluster started here (127.0.0.1 would be rewritten by Ray)"
    )
    start_timeout_s: float = Field(180.0, gt=0, description="seconds within which every process must be ready")

    @field_validator("host", "ray_node_ip")
    @classmethod
    def _is_a_host(cls, value: str, info: ValidationInfo) -> str:
        return checked(lambda: check_host(str(info.field_name), value)) if value else value


class ModelConfig(Section):
    """The model that every worker loads."""

    path: str = Field(
        "",
        description="local directory or hub id of a decoder-only model; empty: a small one with random weights, to try the service",
    )
    revision: str = Field("main", min_length=1, description="revision on the hub")
    chat_template: str = Field("", description="name of the chat template, if the model has several; empty: its default")
    tool_format: str = Field(
        "auto",
        min_length=1,
        description="how the model writes tool calls: auto (by its chat template), hermes, qwen, llama3_json, mistral, none, or package.module:Class",
    )
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = Field(
        "auto", description="data type of weights and KV; auto: float32 on a CPU, otherwise the checkpoint's"
    )
    max_context_tokens: int = Field(0, ge=0, description="most tokens of prompt and output together; 0: the model's own limit")
    self_test: bool = Field(
        True, description="compare the engine's logits with those of the model's own attention when it is loaded"
    )


class PredictorConfig(Section):
    """The predictor service."""

    model: str = Field(
        "mixture", min_length=1, description="predictor: mixture, the name of a single expert, or package.module:Class"
    )
    experts: str = Field(
        "context-tree,linear,step-graph", min_length=1, description="experts of the mixture, by name or package.module:Class"
    )
    max_agents: int = Field(
        256,
        ge=8,
        le=65_536,
        description="agents of one workload that are distinguished; beyond that, those not seen for longest are dropped",
    )
    horizon: int = Field(3, ge=1, le=16, description="number of steps that a forecast looks ahead (K)")
    smoothing: float = Field(0.1, gt=0, description="pseudo-count of unseen transitions")
    network_positions: bool = Field(
        True, description="expert `pbkv` knows how long ago each step was; false: the network of the paper"
    )
    broadcast_interval_s: float = Field(
        0.002, gt=0, description="seconds; forecasts that change within this time are sent together"
    )
    prior: str = Field("default", min_length=1, description="what policy `pbkv` begins with: default, off (nothing) or a file")
    access_interval_s: float = Field(2.0, gt=0, description="seconds between two updates of the workers' access model")
    state_path: str = Field("", description="file for what has been learnt; empty: it is kept only while the cluster runs")
    subscriber_queue: int = Field(
        1024, ge=1, description="most forecasts queued for one subscriber; beyond that, it is sent a snapshot"
    )


class GatewayConfig(Section):
    """The gateway, which clients connect to."""

    replicas: int = Field(
        1,
        ge=0,
        le=64,
        description="number of gateways, on different nodes as far as there are; more on the node of `serve` have the next ports. 0: one on each node",
    )
    port: int = Field(26100, ge=0, le=65535, description="port that clients connect to; 0 takes a free one")
    http_port: int = Field(
        26180, ge=-1, le=65535, description="port of the OpenAI-compatible HTTP API; 0 takes a free one, -1: none"
    )
    http_model: str = Field("", description="name of the model for HTTP clients; empty: the last part of its path (model.path)")
    http_max_body_bytes: int = Field(16 << 20, ge=1024, description="most bytes of the body of one HTTP request")
    http_max_connections: int = Field(4096, ge=1, description="most HTTP connections; further ones are closed")
    http_read_timeout_s: float = Field(60.0, gt=0, description="seconds within which a whole HTTP request must arrive")
    http_recognition_bytes: int = Field(
        64 << 20, ge=0, description="most bytes kept to recognise conversations whose clients name no workflow"
    )
    max_steps: int = Field(4096, ge=1, description="most steps in flight; further ones are refused")
    max_step_bytes: int = Field(
        1 << 30, ge=64 << 20, description="most bytes of the requests of steps in flight; further ones are refused"
    )
    max_workflows: int = Field(100_000, ge=1, description="most open workflows; further ones are refused")
    max_graph_bytes: int = Field(
        256 << 20, ge=0, description="most bytes of the names in the step graphs of open workflows; further ones are refused"
    )
    workflow_lease_s: float = Field(
        600.0, gt=0, description="seconds of silence after which a workflow ends, unless its client asks for another time"
    )
    step_record_bytes: int = Field(
        64 << 20,
        ge=0,
        description="most bytes of the output of steps that is kept for clients that submit a step again by its id",
    )
    direct_output: bool = Field(
        True,
        description="send the output of steps straight from workers to clients of ours that can reach them, see docs/deploy.md",
    )
    retry_limit: int = Field(3, ge=0, description="times that a step may lose its worker before it fails")
    worker_wait_s: float = Field(60.0, gt=0, description="seconds that a step waits while no worker is reachable")
    available_blocks: int = Field(
        2_000_000, ge=0, description="block keys remembered to measure what an infinite cache would hit"
    )

    @model_validator(mode="after")
    def _ports_suffice(self) -> "GatewayConfig":
        further = max(self.replicas, 1) - 1
        for name, port in (("port", self.port), ("http_port", self.http_port)):
            if port + further > 65535:
                raise ValueError(f"{name} leaves no ports for {self.replicas} replicas, which have the next ones")
        return self


class Config(Section):
    """The whole configuration."""

    cluster: ClusterConfig = ClusterConfig()
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    cache: CacheConfig = CacheConfig()
    predictor: PredictorConfig = PredictorConfig()
    gateway: GatewayConfig = GatewayConfig()
    limits: LimitsConfig = LimitsConfig()
    security: SecurityConfig = SecurityConfig()
    redis: RedisConfig = RedisConfig()
    kv_events: KvEventsConfig = KvEventsConfig()
    host_store: HostStoreConfig = HostStoreConfig()
    otel: OtelConfig = OtelConfig()
    sidecar: SidecarConfig = SidecarConfig()
    metrics: MetricsConfig = MetricsConfig()
    dashboard: DashboardConfig = DashboardConfig()
    logging: LoggingConfig = LoggingConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    plugins: PluginsConfig = PluginsConfig()
    vllm: VllmConfig = VllmConfig()

    @model_validator(mode="after")
    def _engine_has_its_settings(self) -> "Config":
        kind, ours, theirs = self.engine.type, self.cluster.workers, self.vllm.workers
        if kind != "mixed" and theirs:
            raise ValueError(f"vllm.workers is for engine.type = mixed; with {kind}, all workers have the same engine")
        if kind == "pbkv" and (self.vllm.args or self.vllm.python):
            raise ValueError("vllm.args and vllm.python are for workers with engine.type = vllm or mixed")
        if kind != "pbkv":
            self.engine.check_for_vllm()
        if ours and theirs >= ours:
            raise ValueError(
                f"vllm.workers leaves no worker for our engine: it must be below cluster.workers ({ours}); "
                "engine.type = vllm gives vLLM all of them"
            )
        return self
