"""Block keys: names of KV blocks, the same in every process of a cluster.

A key is a chained hash: it names a block together with all tokens before it. Keys are computed only for use between processes
(cluster index, host store). Inside a process, the prefix tree compares the tokens themselves.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS

KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Namespace:
    """What blocks of equal tokens must share to be interchangeable: all that decides their bytes, and the tenant."""

    model: str
    revision: str  # digest of the weights and the model's configuration
    dtype: str
    layout: str
    block_tokens: int = BLOCK_TOKENS
    rank: str = "0/1"  # index and number of the model's shards
    salt: str = ""  # the tenant
    rotary_switch: int = 0  # tokens; a longer sequence has other rotary factors, and so other KV from its first token. 0: none
    is_long: bool = False  # of sequences longer than that

    def of_tenant(self, tenant: str, tokens: int) -> "Namespace":
        """The namespace of a tenant's blocks in a sequence of so many tokens."""
        return replace(self, salt=tenant).of_length(tokens)

    def of_length(self, tokens: int) -> "Namespace":
        """The namespace of the blocks of a sequence of so many tokens. All of them leave it when the sequence outgrows it."""
        is_long = 0 < self.rotary_switch < tokens
        return self if is_long is self.is_long else replace(self, is_long=is_long)

    def of_any_engine(self) -> "Namespace":
        """What equal tokens have in common whoever has computed them: to compare texts by it, not to find blocks."""
        return replace(self, revision="", dtype="", layout="")

    def digest(self) -> bytes:
        """The parent key of the namespace's first blocks."""
        always = (self.model, self.revision, self.dtype, self.layout, self.block_tokens, self.rank, self.salt)
        switch = (self.rotary_switch, self.is_long)
        fields = (*always, *switch) if any(switch) else always
        text = "\0".join(f"{len(str(value))}:{value}" for value in fields)
        return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def block_keys(namespace: Namespace, packed: bytes) -> list[bytes]:
    """Keys of the full blocks of a token sequence, in order. Tokens after the last full block are left out.

    Args:
        namespace: of the blocks.
        packed: packed token ids from the start of the sequence.
    """
    return chain_keys(namespace.digest(), packed)


def chain_keys(parent: bytes, packed: bytes) -> list[bytes]:
    """Keys of the full blocks of `packed`, which follow the block whose key is `parent`."""
    key = parent
    keys = []
    hasher = hashlib.blake2b
    for start in range(0, len(packed) - BLOCK_BYTES + 1, BLOCK_BYTES):
        key = hasher(key + packed[start : start + BLOCK_BYTES], digest_size=KEY_BYTES).digest()
        keys.append(key)
    return keys


class BlockLabel(NamedTuple):
    """What a block is, wherever its bytes lie: enough to find it by its key, and to rebuild the path that leads to it."""

    namespace: bytes  # digest
    parent: bytes  # key of the block before it; of a first block, the namespace
    key: bytes
    tokens: bytes  # packed

    @property
    def is_consistent(self) -> bool:
        """Whether the key follows from the parent and the tokens."""
        return chain_keys(self.parent, self.tokens) == [self.key]


class StoredBlock(NamedTuple):
    """A block that was found in a slot of a slower tier."""

    slot: int
    label: BlockLabel
    age_s: float  # since it was stored
