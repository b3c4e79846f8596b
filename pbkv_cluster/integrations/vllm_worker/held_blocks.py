"""What vLLM holds, as its KV events tell, under the block keys of the cluster.

vLLM's blocks are larger than ours, a whole number of them, and it names them by hashes of its own. An event has the tokens of a
block, the hash of the block before it, and of a first block the salt: that is all of which a block key is made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgpack

from pbkv_cluster.core.blocks import BlockLabel, Namespace, chain_keys
from pbkv_cluster.core.locations.residency import NOWHERE, Residency
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, TOKEN_BYTES, pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.store.kv_events.copies import Copies
from pbkv_cluster.store.kv_events.messages import BlockRemoved, BlockStored
from pbkv_cluster.store.kv_events.unknown_blocks import UnknownBlocks

BYTES_A_BLOCK = 500  # of labels, residency and entries, where a block of vLLM has 16 tokens, measured with CPython 3.11
_MAX_BYTES = 2 << 30
_TIERS = {"GPU": Tier.GPU, "CPU": Tier.HOST, "STORAGE": Tier.DISK}
_IN = {tiers: Residency(tiers) for tiers in map(frozenset, ([Tier.GPU], [Tier.HOST], [Tier.GPU, Tier.HOST]))}

Labels = tuple[BlockLabel, ...]


class HeldBlocks:
    """The blocks of one engine; bounded in bytes. What does not fit is left out, and counted."""

    def __init__(
        self, namespace: Namespace, on_change: Callable[[BlockLabel, Residency], None], max_bytes: int = _MAX_BYTES
    ) -> None:
        """Args:
        namespace: of the model's blocks, without a tenant.
        on_change: told of each block that enters or leaves a tier.
        max_bytes: of memory.
        """
        self.unknown = UnknownBlocks()  # left out: blocks of 16 tokens; orphans: blocks of vLLM
        self.times_emptied = 0
        self._namespace = namespace
        self._on_change = on_change
        self._max_blocks = max_bytes // BYTES_A_BLOCK
        self._labels: dict[bytes, Labels] = {}  # by vLLM's hash
        self._copies = Copies()  # by vLLM's hash
        self._residency: dict[bytes, Residency] = {}  # by block key

    def __len__(self) -> int:
        """Blocks of 16 tokens."""
        return len(self._residency)

    @property
    def is_complete(self) -> bool:
        """Whether every block that was told of is here."""
        return not self.unknown

    def residency(self) -> Mapping[bytes, Residency]:
        """Every block, and where it lies."""
        return dict(self._residency)

    def count(self, tier: Tier) -> int:
        """Blocks of 16 tokens in a tier."""
        return sum(tier in residency.tiers for residency in self._residency.values())

    def match(self, keys: Sequence[bytes]) -> dict[Tier, int]:
        """Leading tokens of a prompt that are held, by the fastest tier that has each.

        Args:
            keys: of the prompt's full blocks.
        """
        found: dict[Tier, int] = {}
        for key in keys:
            residency = self._residency.get(key)
            if residency is None:
                break
            tier = next(each for each in Tier if each in residency.tiers)
            found[tier] = found.get(tier, 0) + BLOCK_TOKENS
        return found

    def clear(self) -> None:
        self.unknown.clear()
        gone, self._labels = self._labels, {}
        self._copies.clear()
        self._residency.clear()
        for label in (label for labels in gone.values() for label in labels):
            self._on_change(label, NOWHERE)

    def emptied(self) -> bool:
        """vLLM has emptied the GPU's cache; what its KV connector has stays. Returns whether that is nothing."""
        self.times_emptied += 1
        for key in self._copies.drop(Tier.GPU):
            self._left(key, Tier.GPU)
        self.unknown.drop(Tier.GPU)
        return not self._labels and not self.unknown

    def stored(self, event: BlockStored) -> None:
        tier = _TIERS.get(event.medium.upper())
        if tier is None:
            return
        packed, size = pack(event.token_ids), event.block_tokens * TOKEN_BYTES
        before = event.parent
        for number, key in enumerate(event.keys):
            labels = self._labels.get(key)
            if labels is None and event.is_by_name:
                continue  # vLLM does not say what it is
            if labels is None:
                # vLLM says of its own blocks whose they are, and not every connector of those that it has.
                extra = event.extra[number] if number < len(event.extra) else b"" if tier is Tier.GPU else None
                labels = self._label(before, packed[number * size : (number + 1) * size], size, extra)
                if labels is None:
                    self.unknown.orphan(len(event.keys) - number, tier)
                    return
                if len(self) + len(labels) > self._max_blocks:
                    self.unknown.leave_out(len(labels) * (len(event.keys) - number), tier)
                    return
                self._labels[key] = labels
            self._copies.add(key, tier)
            self._move(labels, lambda tiers: tiers | {tier})
            before = key

    def removed(self, event: BlockRemoved) -> None:
        tier = _TIERS.get(event.medium.upper())
        if tier is None:
            return
        for key in event.keys:
            if self._copies.remove(key, tier):
                self._left(key, tier)

    def _left(self, key: bytes, tier: Tier) -> None:
        """No copy of a block is in a tier any more."""
        self._move(self._labels[key], lambda tiers: tiers - {tier})
        if not self._copies.has(key):
            del self._labels[key]

    def _move(self, labels: Labels, change: Callable[[frozenset[Tier]], frozenset[Tier]]) -> None:
        for label in labels:
            before = self._residency.get(label.key, NOWHERE)
            tiers = change(before.tiers)
            if tiers == before.tiers:
                continue
            if tiers:
                now = self._residency[label.key] = _IN.get(tiers) or Residency(tiers)
            else:
                now = NOWHERE
                del self._residency[label.key]
            self._on_change(label, now)

    def _label(self, before: bytes | None, packed: bytes, size: int, extra: bytes | None) -> Labels | None:
        """The labels of a block of vLLM; None: its prefix or its tenant is not known, or it is not of tokens alone."""
        if len(packed) < size:
            return None
        if before is None:
            tenant = None if extra is None else _tenant(extra)
            if tenant is None:
                return None
            root = parent = replace(self._namespace, salt=tenant).digest()
        elif (known := self._labels.get(before)) is not None:
            root, parent = known[-1].namespace, known[-1].key
        else:
            return None
        keys = chain_keys(parent, packed)
        tokens = [packed[at : at + BLOCK_BYTES] for at in range(0, size, BLOCK_BYTES)]
        return tuple(map(BlockLabel, [root] * len(keys), [parent, *keys[:-1]], keys, tokens))


def _tenant(extra: bytes) -> str | None:
    """The tenant in what distinguishes a first block beside its tokens; None: it is something else, such as an image."""
    values = msgpack.unpackb(extra) if extra else [""]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None
