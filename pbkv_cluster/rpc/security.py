"""What a process shows to the others of its cluster, and what it asks of those that call it.

A process takes part in one cluster at most, so it has one of these, which its servers and connections use. Until
`set_up_security` is called, as in clients, nobody is asked for a key, and connections are plain.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbkv_cluster.core.security.tls import Tls

if TYPE_CHECKING:
    from pbkv_cluster.core.config import SecurityConfig
    from pbkv_cluster.core.security.keyring import Keyring

_HANDSHAKE_S = 10.0  # that a client may take for it


@dataclass(frozen=True, slots=True)
class Access:
    """What a connection shows: nothing, as by default, an API key, a certificate, or both."""

    api_key: str = field(default="", repr=False)
    tls: Tls | None = None  # None: a plain connection


@dataclass(frozen=True, slots=True)
class Security:
    """Of one process."""

    keyring: "Keyring | None" = None  # None: nobody is asked for a key
    tls: Tls | None = None  # of its servers
    access: Access = Access()  # of its connections
    open_metrics: bool = False

    @property
    def http(self) -> str:
        """The scheme of its URLs."""
        return "http" if self.tls is None else "https"

    def for_members(self) -> ssl.SSLContext | None:
        """Of a server that only members connect to; None: no TLS."""
        return None if self.tls is None else self.tls.server_context(mutual=True)

    def to_members(self) -> ssl.SSLContext | None:
        """Of connections to other members; None: no TLS."""
        return None if self.tls is None else self.tls.client_context()

    def server_options(self) -> dict[str, Any]:
        """Of asyncio's servers, for TLS."""
        if self.tls is None:
            return {}
        return {"ssl": self.tls.server_context(mutual=False), "ssl_handshake_timeout": _HANDSHAKE_S}


class _Process:
    security = Security()


def this_process() -> Security:
    """That of this process."""
    return _Process.security


def set_up_security(config: "SecurityConfig", api_key: str) -> None:
    """Has this process serve and connect as configured.

    Args:
        config: of its cluster.
        api_key: that it shows to the others, and accepts from them; where no credentials are configured, it is not looked at.

    Raises:
        ConfigError: a file cannot be used; names the setting.
    """
    from pbkv_cluster.core.security.keyring import Keyring  # with its parser, which clients can do without

    tls = Tls.of(config)
    if tls is not None:
        tls.check()
    keyring = Keyring(Path(config.credentials), api_key) if config.credentials else None
    _Process.security = Security(keyring, tls, Access(api_key, tls), config.open_metrics)


def set_up_access(access: Access) -> None:
    """Has this process connect so; it serves as before."""
    before = _Process.security
    _Process.security = Security(before.keyring, before.tls, access, before.open_metrics)


def stop_security() -> None:
    """Takes back what `set_up_security` and `set_up_access` have done."""
    _Process.security = Security()
