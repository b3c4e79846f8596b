"""Settings of what keeps blocks, or tells where they are: Redis, host memory, KV events."""

import re
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from pbkv_cluster.core.config.section import Section, checked
from pbkv_cluster.core.locations.redis_url import parse_redis_url


class RedisConfig(Section):
    """The cluster-wide index."""

    url: str = Field(
        "",
        repr=False,
        description="URL of a running Redis (docs/deploy.md), with Sentinels or in cluster mode, too; empty: one is started for this cluster",
    )
    lease_s: float = Field(10.0, gt=0, description="seconds after which a silent node or worker is removed, with its blocks")
    flush_interval_s: float = Field(0.05, gt=0, description="seconds; block changes within this time are announced together")

    @field_validator("url")
    @classmethod
    def _is_a_url_of_redis(cls, value: str) -> str:
        if value:
            checked(lambda: parse_redis_url("url", value).plain)
        return value


class KvEventsConfig(Section):
    """Events of the workers' caches over ZeroMQ, as vLLM publishes them, for routers and other observers."""

    endpoint: str = Field(
        "", description="where they are published, e.g. tcp://127.0.0.1:5557 (worker n adds n to the port); empty: nowhere"
    )
    replay_endpoint: str = Field("", description="where those that were missed are sent again; worker n adds n to the port")
    topic: str = Field("kv-events", description="topic of all messages")
    buffer_bytes: int = Field(64 << 20, ge=0, description="bytes of the latest events of a worker that can be sent again")

    @field_validator("endpoint", "replay_endpoint")
    @classmethod
    def _has_a_port(cls, value: str, info: ValidationInfo) -> str:
        if value and not re.fullmatch(r"tcp://[^:/]+:\d{1,5}", value):
            raise ValueError(f"must be like tcp://127.0.0.1:5557, got {value!r}")
        return value

    def of_worker(self, number: int) -> "KvEventsConfig":
        """With the ports of a worker."""
        return self.model_copy(
            update={"endpoint": _shifted(self.endpoint, number), "replay_endpoint": _shifted(self.replay_endpoint, number)}
        )


def _shifted(endpoint: str, number: int) -> str:
    address, _, port = endpoint.rpartition(":")
    return f"{address}:{int(port) + number}" if endpoint else ""


class HostStoreConfig(Section):
    """The host memory of each node."""

    memory_share: float = Field(
        0.25, gt=0, le=0.9, description="share of the node's memory that is available for its workers' host tiers"
    )
    memory_bytes: int = Field(0, ge=0, description="that memory in bytes; 0: memory_share")
    huge_pages: Literal["none", "transparent", "reserved"] = Field("none", description="huge pages for that memory")
    numa_node: int = Field(-1, ge=-1, le=1023, description="NUMA node that the memory is taken from; -1: any")
    peer_port: int = Field(0, ge=0, le=65535, description="port at which other nodes read blocks; 0 takes a free one")
    peer_transport: str = Field("tcp", min_length=1, description="carries blocks between nodes: tcp, or package.module:Class")
    lease_s: float = Field(30.0, gt=0, description="seconds after which a silent worker's host memory is given to others")
