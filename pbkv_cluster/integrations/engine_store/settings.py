"""Where an engine's store is, and how large."""

import os
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator

from pbkv_cluster.core.config.section import Section, checked
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.core.locations.redis_url import parse_redis_url

REDIS_VARIABLE = "PBKV_REDIS_URL"


class StoreSettings(Section):
    """Settings as engines pass them on, by name."""

    name: str = Field(
        "engines",
        pattern="^[A-Za-z0-9_.-]{1,64}$",
        description="of the node's store; engines of one user that name the same one share it. Started if it does not run",
    )
    endpoint: str = Field("", description="host:port of a host store that runs already, instead of one by name")
    redis_url: str = Field(
        default_factory=lambda: os.environ.get(REDIS_VARIABLE, ""),
        repr=False,
        description=f"Redis by which engines find blocks of other nodes; by default ${REDIS_VARIABLE}; empty: none",
    )
    cluster: str = Field("pbkv", pattern="^[A-Za-z0-9_.-]{1,64}$", description="name of the cluster in that Redis")
    host: str = Field("127.0.0.1", description="where a store that is started serves its blocks to other nodes")
    region_bytes: int = Field(4 << 30, gt=0, description="host memory of this engine's process; less where there is less")
    arena_bytes: int = Field(0, ge=0, description="of a store that is started, for all its engines; 0: half of the memory")
    keep_s: float = Field(600.0, gt=0, description="seconds for which the blocks of an engine that has ended are kept")
    threads: int = Field(2, ge=1, le=64, description="that load blocks; one more stores them")
    pending_bytes: int = Field(1 << 30, gt=0, description="bytes that may wait to be stored, and as many to be loaded")
    start_timeout_s: float = Field(20.0, ge=0, description="seconds that an engine waits for its region when it starts")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Settings from an engine's own configuration.

        Raises:
            InvalidArgument: names the first option that is wrong or unknown.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "options"
            known = f"; known are {', '.join(cls.model_fields)}" if first["type"] == "extra_forbidden" else ""
            raise InvalidArgument(field, first["msg"] + known) from None

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return checked(lambda: str(parse_address("endpoint", value.removeprefix("grpc://")))) if value else ""

    @field_validator("redis_url")
    @classmethod
    def _is_a_url_of_redis(cls, value: str) -> str:
        if value:
            checked(lambda: parse_redis_url("redis_url", value).plain)
        return value
