"""An engine's keys and bytes as keys, labels and payloads of blocks in the arena.

The engine's key and the namespace together give the block's key, so equal keys of two namespaces never meet. The engine's key
is also in the slot's header, in the place of the tokens, which a foreign engine need not tell.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from pbkv_cluster.core.blocks import KEY_BYTES, BlockLabel
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.store.arena.slots import Bytes

BlockBytes: TypeAlias = "bytes | bytearray | memoryview | Bytes"

MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 32
NO_PARENT = bytes(KEY_BYTES)


def block_key(namespace: bytes, key: bytes) -> bytes:
    """Key of a block in the arena.

    Args:
        namespace: digest.
        key: the engine's.

    Raises:
        InvalidArgument: the engine's key is too short or too long.
    """
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise InvalidArgument("key", f"must have from {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes, got {len(key)}")
    return hashlib.blake2b(key, digest_size=KEY_BYTES, key=namespace).digest()


def label_chain(namespace: bytes, keys: Sequence[bytes], parent: bytes | None) -> list[BlockLabel]:
    """Labels of blocks of which each continues the one before it.

    Args:
        namespace: digest.
        keys: the engine's.
        parent: the engine's key of the block that the first one continues; None: of none that is known.

    Raises:
        InvalidArgument: a key is too short or too long.
    """
    before = NO_PARENT if parent is None else block_key(namespace, parent)
    labels = []
    for key in keys:
        name = block_key(namespace, key)
        labels.append(BlockLabel(namespace, before, name, key.ljust(BLOCK_BYTES - 1, b"\0") + bytes([len(key)])))
        before = name
    return labels


def engine_key(label: BlockLabel) -> bytes:
    """The engine's key in a label that `label_chain` has made."""
    return label.tokens[: min(label.tokens[-1], MAX_KEY_BYTES)]


def checked_bytes(block: BlockBytes, size: int) -> Bytes:
    """A block's memory as uint8, without a copy.

    Raises:
        InvalidArgument: it has another length than `size`.
    """
    array = np.frombuffer(block, np.uint8)
    if array.nbytes != size:
        raise InvalidArgument("blocks", f"each must have {size} bytes, got {array.nbytes}")
    return array
