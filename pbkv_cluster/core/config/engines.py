"""Other engines: what runs inside them, whose processes read it from the environment or from `PBKV_CONFIG`; vLLM as a
worker; and the sidecar, a proxy in front of engines that are not ours.
"""

import re
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from pbkv_cluster.core.config.section import Section

Hint = Literal["cache_salt", "kv_hints", "kv_transfer_params", "priority", "session_id"]


class SidecarEngine(Section):
    """One engine: a server with OpenAI's API, such as vLLM or SGLang."""

    url: str = Field(description="where it serves, without the path: http://10.0.0.7:8000")
    kind: Literal["vllm", "sglang"] = Field("vllm", description="whose server: vLLM serves low priorities first, SGLang high")
    kv_events: str = Field("", description="where it publishes its KV events, e.g. tcp://10.0.0.7:5557; empty: nowhere")
    kv_replay: str = Field("", description="where it sends again those that were missed; empty: nowhere")
    hints: tuple[Hint, ...] = Field((), description="fields that the sidecar adds to its requests")
    key_file: str = Field("", description="file with the API key that it is shown; empty: what the client has sent")

    memory_tokens: int = Field(
        0, ge=0, description="that its KV memory holds, as it logs at its start; 0: not known, then no choice goes by memory"
    )

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        form = "must be like http://10.0.0.7:8000, without a path"
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            raise ValueError(form) from None
        if not usable or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(form)
        return value.rstrip("/")

    @field_validator("kv_events", "kv_replay")
    @classmethod
    def _is_an_endpoint(cls, value: str, info: ValidationInfo) -> str:
        if value and not re.fullmatch(r"tcp://[^\s/*]+:\d{1,5}|ipc://\S+", value):
            raise ValueError("must be like tcp://10.0.0.7:5557 or ipc:///run/events")
        return value

    @model_validator(mode="after")
    def _replay_needs_events(self) -> "SidecarEngine":
        if self.kv_replay and not self.kv_events:
            raise ValueError("kv_replay needs kv_events")
        return self

    @property
    def name(self) -> str:
        """What it is called in metrics and logs: host and port."""
        return urlsplit(self.url).netloc


class SidecarConfig(Section):
    """The sidecar. Bounds on its HTTP port, on steps and workflows are those of `gateway`."""

    port: int = Field(26190, ge=0, le=65535, description="port that clients connect to; 0 takes a free one")
    engines: tuple[SidecarEngine, ...] = Field((), description="engines: url, kind, kv_events, kv_replay, hints, key_file")
    tokenizer: str = Field(
        "", description="local directory or hub id of the engines' tokenizer, to compare prompts with KV events; empty: by text"
    )
    index_bytes: int = Field(256 << 20, ge=1 << 20, description="most bytes kept for each engine of what it holds")
    max_running: int = Field(64, ge=1, description="steps that an engine runs at once")
    health_interval_s: float = Field(2.0, gt=0, description="seconds between two questions whether an engine is there")
    connect_timeout_s: float = Field(5.0, gt=0, description="seconds for a connection to an engine")
    answer_timeout_s: float = Field(1800.0, gt=0, description="seconds without a byte of an answer after which it is given up")

    @field_validator("engines", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """In a variable or a flag, it is YAML: `[{url: "http://10.0.0.7:8000"}]`."""
        if not isinstance(value, str):
            return value
        try:
            return yaml.safe_load(value) or ()
        except yaml.YAMLError:
            raise ValueError("must be YAML, a list of engines") from None

    @field_validator("engines")
    @classmethod
    def _are_different(cls, value: tuple[SidecarEngine, ...]) -> tuple[SidecarEngine, ...]:
        names = [engine.name for engine in value]
        if len(set(names)) < len(names):
            raise ValueError("two engines have the same host and port")
        return value


class PluginsConfig(Section):
    """All that other engines load of ours."""

    any_version: bool = Field(False, description="run in versions of engines that were not tested (docs/integrations.md), too")


class VllmConfig(Section):
    """vLLM: as a worker of a cluster (`workers`, `python`, `args`; `engine.type`), and the eviction policy of its CPU tier.

    The policy's other parameters are those of `cache` and `predictor.prior`.
    """

    workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="with engine.type = mixed: workers of each node that run vLLM; 0: as many as its Ray resource `vllm` says",
    )
    python: str = Field("", description="interpreter in whose environment vLLM is installed; empty: that of the cluster")
    args: dict[str, Any] = Field(
        {},
        description="vLLM's engine arguments by name, with underscores, beyond those that other settings decide",
    )

    predictor: str = Field(
        "", description="host:port of a running predictor, for forecasts and what is learnt; empty: vLLM learns on its own"
    )
    silence_s: float = Field(
        300.0, gt=0, description="seconds without a request after which a workflow has ended, if nobody tells its end"
    )
    max_workflows: int = Field(
        4096, ge=1, description="most workflows that are open; beyond that, the one silent for longest has ended"
    )

    @field_validator("args", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """In a variable or a flag, it is YAML: `{block_size: 32}`."""
        if not isinstance(value, str):
            return value
        try:
            return yaml.safe_load(value) or {}
        except yaml.YAMLError:
            raise ValueError("must be YAML, a mapping of engine arguments") from None
