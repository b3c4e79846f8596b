"""What comes in from, and goes out to, tools that watch applications and clusters: spans, metrics, logs and traces."""

from typing import Literal

from pydantic import Field, field_validator

from pbkv_cluster.core.config.section import Section, checked
from pbkv_cluster.core.locations.addresses import check_host, parse_address


class OtelConfig(Section):
    """Workflow events from OpenTelemetry spans, for applications that are not clients of the gateway."""

    enabled: bool = Field(False, description="receive spans (OTLP) and report their workflows to the predictor")
    port: int = Field(4317, ge=0, le=65535, description="port of OTLP over gRPC; 0 takes a free one")
    http_port: int = Field(4318, ge=-1, le=65535, description="port of OTLP over HTTP; 0 takes a free one, -1: none")
    reorder_s: float = Field(
        2.0,
        ge=0,
        description="seconds that a span waits for earlier ones; must exceed the differences between senders' batching delays",
    )
    parent_wait_s: float = Field(
        10.0, ge=0, description="seconds that a model call without an agent's name waits for an enclosing span that has one"
    )
    silence_s: float = Field(600.0, gt=0, description="seconds without a span after which a workflow ends")
    max_workflows: int = Field(
        10_000, ge=1, description="most open workflows; beyond that, the one silent for longest is ended"
    )
    max_spans: int = Field(200_000, ge=1, description="spans remembered, to recognise duplicates and to find parents")
    max_waiting_spans: int = Field(4096, ge=1, description="most spans of one workflow that wait; further ones are refused")


class MetricsConfig(Section):
    """Metrics for Prometheus: every member serves its own, and one endpoint tells where."""

    enabled: bool = Field(True, description="serve metrics")
    port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port where `pbkv serve` tells Prometheus where the metrics of all members are; 0 takes a free one",
    )
    max_workloads: int = Field(
        32, ge=0, le=1024, description="workloads that are told apart in metrics; further ones are counted together"
    )


class LoggingConfig(Section):
    """The logs of all processes."""

    format: Literal["console", "json"] = Field("console", description="one record a line: as text for people, or as JSON")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity that is logged")
    prompts: bool = Field(False, description="log the text of every prompt; never otherwise")


class TelemetryConfig(Section):
    """Traces of steps, for an OpenTelemetry collector."""

    otlp_endpoint: str = Field(
        "", description="host:port of a collector (OTLP over gRPC) that gets the spans of every step; empty: none"
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return checked(lambda: str(parse_address("otlp_endpoint", value))) if value else value


class DashboardConfig(Section):
    """Pages for operators, served by the process that runs the cluster; they need metrics."""

    enabled: bool = Field(True, description="serve the dashboard, if the packages of the extra `dashboard` are installed")
    host: str = Field(
        "127.0.0.1",
        description="address that the dashboard binds; without API keys (security.credentials) it asks for no password",
    )
    port: int = Field(0, ge=0, le=65535, description="port of the dashboard; 0 takes a free one")
    history_path: str = Field("", description="file that keeps its history over restarts (SQLite); empty: it is kept in memory")
    history_bytes: int = Field(
        2 << 20, ge=2 << 20, le=1 << 30, description="bytes for its history; 2 MiB hold some 20 hours: a row each half minute"
    )

    @field_validator("host")
    @classmethod
    def _is_a_host(cls, value: str) -> str:
        return check_host("host", value)
