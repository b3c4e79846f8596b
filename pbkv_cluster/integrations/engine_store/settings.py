"""Where an engine's store is, and how large."""

import os
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from pbkv_cluster.core.config.section import Section, checked
from pbkv_cluster.core.config.security import SecurityConfig
from pbkv_cluster.core.errors import ConfigError, InvalidArgument
from pbkv_cluster.core.locations.addresses import parse_address
from pbkv_cluster.core.locations.redis_url import parse_redis_url
from pbkv_cluster.core.security.exposure import is_loopback
from pbkv_cluster.core.security.tls import SYSTEM, Tls
from pbkv_cluster.rpc.security import Access

REDIS_VARIABLE = "PBKV_REDIS_URL"
KEY_VARIABLE = "PBKV_API_KEY"
CA_VARIABLE = "PBKV_TLS_CA"
FILES = (
    "credentials",
    "tls_certificate",
    "tls_key",
    "tls_ca",
    "tls_name",
)  # of `security`, as a store that is started has them


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
    api_key: str = Field(
        default_factory=lambda: os.environ.get(KEY_VARIABLE, ""),
        repr=False,
        description=f"of an operator, which the engine shows to the host store; by default ${KEY_VARIABLE}",
    )
    tls_ca: str = Field(
        default_factory=lambda: os.environ.get(CA_VARIABLE, ""),
        description=f"certificates that host stores' may be signed by, or `system`; by default ${CA_VARIABLE}; empty: no TLS",
    )
    tls_certificate: str = Field(
        "", description="certificate that the engine shows to them, and a store that is started to others"
    )
    tls_key: str = Field("", description="its private key")
    tls_name: str = Field("", description="name in host stores' certificates; empty: the address that each is reached by")
    credentials: str = Field("", description="API keys that a store that is started accepts (security.credentials)")
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
            if not first["loc"]:  # of several fields; the message begins with one
                raise InvalidArgument(*first["msg"].removeprefix("Value error, ").split(": ", 1)) from None
            field = ".".join(map(str, first["loc"]))
            known = f"; known are {', '.join(cls.model_fields)}" if first["type"] == "extra_forbidden" else ""
            raise InvalidArgument(field, first["msg"] + known) from None

    @property
    def security(self) -> SecurityConfig:
        """Of a store that is started."""
        ca = "" if self.tls_ca == SYSTEM or not self.tls_certificate else self.tls_ca
        name = self.tls_name if self.tls_certificate else ""
        return SecurityConfig(
            credentials=self.credentials, tls_certificate=self.tls_certificate, tls_key=self.tls_key, tls_ca=ca, tls_name=name
        )

    def access(self) -> Access | None:
        """What the engine shows to host stores; None: these settings say nothing of it.

        Raises:
            InvalidArgument: a file cannot be used; names the option.
        """
        Tls.of_client(self.tls_ca)  # checks it
        ca = "" if self.tls_ca == SYSTEM else self.tls_ca
        tls = Tls(self.tls_certificate, self.tls_key, ca, self.tls_name) if self.tls_ca or self.tls_certificate else None
        if tls is not None and tls.certificate:
            try:
                tls.check()
            except ConfigError as error:
                raise InvalidArgument("tls_certificate", str(error)) from None
        return Access(self.api_key, tls) if self.api_key or tls else None

    @model_validator(mode="after")
    def _is_not_open_to_all(self) -> Self:
        if bool(self.tls_certificate) is not bool(self.tls_key):
            raise ValueError("tls_certificate: it and tls_key need each other")
        if self.credentials and not self.api_key:
            raise ValueError("api_key: engines must show one to a store with credentials")
        if self.redis_url and not self.endpoint and not is_loopback(self.host) and not self.credentials:
            raise ValueError(f"host: {self.host} can be reached by others, so the store needs credentials, a file of API keys")
        return self

    @field_validator("credentials", "tls_certificate", "tls_key", "tls_ca")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        """A store that is started does not run in the folder of the engine for ever."""
        return os.path.abspath(os.path.expanduser(value)) if value and value != SYSTEM else value

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
