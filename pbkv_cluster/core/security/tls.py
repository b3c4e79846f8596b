"""Certificates, as contexts for servers and for connections."""

import ssl
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pbkv_cluster.core.errors import ConfigError, InvalidArgument

if TYPE_CHECKING:
    from pbkv_cluster.core.config import SecurityConfig

SYSTEM = "system"  # in place of a file: the certificates that the system trusts


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of one end of a connection. An end without a certificate of its own only connects.

    What another end shows must be signed by a certificate in `ca`; empty: by one that the system trusts.
    """

    certificate: str = ""
    key: str = ""
    ca: str = ""
    name: str = ""  # in the certificates of others, where it is not the address that they are reached by

    @classmethod
    def of(cls, config: "SecurityConfig") -> "Tls | None":
        """That of a member; None: no TLS."""
        if not config.tls_certificate:
            return None
        return cls(config.tls_certificate, config.tls_key, config.tls_ca, config.tls_name)

    @classmethod
    def of_client(cls, ca: str | None, field: str = "tls_ca") -> "Tls | None":
        """That of a client outside the cluster.

        Args:
            ca: file of the certificates to trust, or "system"; None or empty: no TLS.
            field: its name, for the error.

        Raises:
            InvalidArgument: the file cannot be read, or holds no certificates.
        """
        if not ca:
            return None
        tls = cls(ca="" if ca == SYSTEM else ca)
        try:
            tls.client_context()
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgument(field, f"{ca} holds no certificates that can be used: {_reason(error)}") from error
        return tls

    def check(self) -> None:
        """Raises:
        ConfigError: a file cannot be read, or the key is not that of the certificate; names the setting.
        """
        try:
            self.server_context(mutual=False)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"security.tls_certificate, security.tls_key: {_reason(error)}") from error
        try:
            self.client_context()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"security.tls_ca: {_reason(error)}") from error

    def server_context(self, *, mutual: bool) -> ssl.SSLContext:
        """For a server.

        Args:
            mutual: who connects must show a certificate too, if `ca` says by whom it must be signed.
        """
        return _server_context(self, mutual and bool(self.ca))

    def client_context(self) -> ssl.SSLContext:
        """For connections to others."""
        return _client_context(self)

    def trusted(self) -> bytes | None:
        """The certificates in `ca`, or those of the system where they are in one file; None: they are not."""
        path = self.ca or ssl.get_default_verify_paths().cafile
        return Path(path).read_bytes() if path else None


@cache
def _server_context(tls: Tls, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    if mutual:
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@cache
def _client_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate:
        context.load_cert_chain(tls.certificate, tls.key)
    return context


def _reason(error: OSError | ssl.SSLError) -> str:
    """`ssl` does not say which file is missing or wrong, only why."""
    return error.strerror or getattr(error, "reason", None) or str(error)
