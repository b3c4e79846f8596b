"""The transports by name."""

from pbkv_cluster.core.registry import Registry
from pbkv_cluster.store.peers.tcp import TcpTransport
from pbkv_cluster.store.peers.transport import Transport

TRANSPORTS: Registry[Transport] = Registry("host_store.peer_transport")
TRANSPORTS.register("tcp")(TcpTransport)


def make_transport(name: str) -> Transport:
    """Makes the transport called `name`, or package.module:Class.

    Raises:
        InvalidArgument: there is no such transport.
    """
    return TRANSPORTS.get(name)()
