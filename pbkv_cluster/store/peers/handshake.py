"""How a reader and a server of blocks find out that they are of one cluster, and speak the same version.

    server   HELLO: magic, version, whether it has room for another connection, a random number
    reader   PROOF: magic, version, a random number, HMAC of both numbers under the server's token
    server   ANSWER: HMAC of both numbers, in the other order

The token is in the server's directory entry, which only members of the cluster can read. It never travels here, and no
proof is of use a second time.
"""

import hmac
import os
import struct

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.peers.stream import Stream
from pbkv_cluster.store.peers.wire import VERSION, Malformed

TOKEN_BYTES = 32
MAGIC = b"pbkvpeer"
NUMBER_BYTES = 32
HELLO = struct.Struct(f"<8sII{NUMBER_BYTES}s")
PROOF = struct.Struct(f"<8sI{NUMBER_BYTES}s32s")
_ROOM, _FULL = 1, 0


def new_token() -> bytes:
    return os.urandom(TOKEN_BYTES)


def refuse(stream: Stream) -> None:
    """Tells a reader that the server has too many connections."""
    stream.send(HELLO.pack(MAGIC, VERSION, _FULL, bytes(NUMBER_BYTES)))


def accept(stream: Stream, token: bytes) -> None:
    """The server's side.

    Raises:
        Malformed: the other side is no reader of this cluster.
        OSError: the connection is lost.
    """
    own = os.urandom(NUMBER_BYTES)
    stream.send(HELLO.pack(MAGIC, VERSION, _ROOM, own))
    magic, version, other, proof = PROOF.unpack(stream.receive(PROOF.size))
    if magic != MAGIC or version != VERSION:
        raise Malformed(f"it is no reader of version {VERSION}")
    if not hmac.compare_digest(proof, _proof(token, own, other)):
        raise Malformed("it does not know the token")
    stream.send(_proof(token, other, own))


def greet(stream: Stream, token: bytes) -> None:
    """The reader's side.

    Raises:
        Unavailable: the other side is no server of this cluster, or has no room; says which.
        OSError: the connection is lost.
    """
    magic, version, room, other = HELLO.unpack(stream.receive(HELLO.size))
    if magic != MAGIC:
        raise Unavailable("it does not serve blocks")
    if version != VERSION:
        raise Unavailable(f"it serves blocks in version {version}, and this program reads version {VERSION}")
    if not room:
        raise Unavailable("it has too many connections")
    own = os.urandom(NUMBER_BYTES)
    stream.send(PROOF.pack(MAGIC, VERSION, own, _proof(token, other, own)))
    if not hmac.compare_digest(stream.receive(32), _proof(token, own, other)):
        raise Unavailable("it does not know its own token: another process has taken its address")


def _proof(token: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(token, first + second, "sha256")
