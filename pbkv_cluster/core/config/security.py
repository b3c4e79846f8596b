"""Who may call the ports of a cluster, and how its connections are encrypted."""

import os
from typing import Self

from pydantic import Field, field_validator, model_validator

from pbkv_cluster.core.config.section import Section, checked
from pbkv_cluster.core.locations.addresses import check_host


class SecurityConfig(Section):
    """Who may call, and how connections are encrypted. All files are read on every machine, under the same path."""

    credentials: str = Field(
        "",
        description="file of API keys and whose they are (docs/deploy.md), read again when it changes; empty: nobody needs one",
    )
    open_metrics: bool = Field(False, description="serve metrics, and the list of where they are, without asking for a key")
    tls_certificate: str = Field(
        "", description="file of the certificate that every port shows (PEM), followed by its chain; empty: no TLS"
    )
    tls_key: str = Field("", description="file of its private key (PEM)")
    tls_ca: str = Field(
        "",
        description="file of the certificates (PEM) one of which must have signed those of all members, which then ask each "
        "other for them; empty: one that the system trusts",
    )
    tls_name: str = Field("", description="name in the members' certificates; empty: the address that each is reached by")

    @field_validator("credentials", "tls_certificate", "tls_key", "tls_ca")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        """Members do not run in the folder in which the configuration was read."""
        return os.path.abspath(os.path.expanduser(value)) if value else value

    @field_validator("tls_name")
    @classmethod
    def _is_a_host(cls, value: str) -> str:
        return checked(lambda: check_host("tls_name", value)) if value else value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if bool(self.tls_certificate) is not bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key need each other")
        if (self.tls_ca or self.tls_name) and not self.tls_certificate:
            raise ValueError("tls_ca and tls_name need tls_certificate")
        return self
