"""Blocks whose bytes tell whose they are, and mappings of regions."""

import mmap

import numpy as np

from pbkv_cluster.core.blocks import BlockLabel, chain_keys
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.store.arena.slots import Bytes

MODEL = b"a model's digest"
NAMESPACE = b"the namespace 16"


def label(number: int, parent: bytes = NAMESPACE, namespace: bytes = NAMESPACE) -> BlockLabel:
    tokens = pack([number] * 16)
    return BlockLabel(namespace, parent, chain_keys(parent, tokens)[0], tokens)


def payload(number: int, size: int) -> Bytes:
    """Bytes that never occur in the payload of another number."""
    return np.full(size // 8, number, np.uint64).view(np.uint8)


def mapped(file: int, offset: int, size: int) -> memoryview:
    return memoryview(mmap.mmap(file, size, offset=offset))
