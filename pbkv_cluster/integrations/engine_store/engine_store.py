"""`EngineStore`: what a foreign engine's process calls to keep blocks and to find those of others."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from pbkv_cluster.core.blocks import BlockLabel, Namespace
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.integrations.engine_store.block_names import BlockBytes, block_key, checked_bytes, engine_key, label_chain
from pbkv_cluster.integrations.engine_store.copy_queue import CopyQueue, done
from pbkv_cluster.integrations.engine_store.loading import Deliver, Loader
from pbkv_cluster.integrations.engine_store.node_link import NodeLink
from pbkv_cluster.integrations.engine_store.outcomes import Outcomes, StoreChange
from pbkv_cluster.integrations.engine_store.own_region import BlockWrite, OwnRegion
from pbkv_cluster.integrations.engine_store.settings import StoreSettings
from pbkv_cluster.rpc.security import set_up_access

_MAX_CHANGES = 100_000
_MAX_DIGESTS = 10_000  # of namespaces; tenants may be many


class EngineStore:
    """The blocks that this engine can read, and a region for its own. Safe for threads; only the constructor raises.

    `counts` has blocks by what became of them: `stored`, `stored_already` (here or at a sibling), `store_refused` (the queue
    was full), `store_no_room`, `store_failed`; `loaded_own`, `loaded_sibling`, `loaded_remote`; `load_absent`,
    `load_overwritten`, `load_damaged`, `load_refused`, `load_unavailable`, `load_failed`; `look_failed`; and, for calls with a
    wrong argument, `bad_argument`.
    """

    def __init__(self, settings: StoreSettings, namespace: Namespace, block_bytes: int, reads_only: bool = False) -> None:
        """Finds or starts the node's store and takes a region, for at most `settings.start_timeout_s` seconds; what could not
        be had by then is tried again in the background, and until then nothing is found.

        Args:
            settings: where the store is.
            namespace: of this engine's blocks. Stores whose namespaces differ in no more than `rank` and `salt` read each
                other's blocks.
            block_bytes: length of every block.
            reads_only: take no region: nothing can be put, but all that others have put is found.

        Raises:
            InvalidArgument: the length is not positive.
        """
        if block_bytes <= 0:
            raise InvalidArgument("block_bytes", f"must be positive, got {block_bytes}")
        self.namespace = namespace
        self.block_bytes = block_bytes
        self._outcomes = Outcomes()
        self._changes: deque[StoreChange] = deque(maxlen=_MAX_CHANGES)
        self._digests: dict[Namespace, bytes] = {}
        if (access := settings.access()) is not None:
            set_up_access(access)
        self._stores = CopyQueue("pbkv-store", 1, settings.pending_bytes)
        region_bytes = 0 if reads_only else settings.region_bytes
        kind = replace(namespace, rank="", salt="")
        self._link = NodeLink(settings, kind, namespace.rank, block_bytes, region_bytes, self._changed)
        self._loader = Loader(self._link, CopyQueue("pbkv-load", settings.threads, settings.pending_bytes), self._outcomes)
        self._link.start()

    # --- state ---

    @property
    def counts(self) -> Counter[str]:
        """Blocks by outcome, see above; only ever grows."""
        return self._outcomes.counts

    @property
    def problem(self) -> str:
        """Why nothing, or not all, can be stored or read; empty: all is well."""
        return self._link.problem

    @property
    def owner(self) -> str:
        """Of the region, as the arena's table and the index call it; empty while there is none."""
        return self._link.owner

    @property
    def region(self) -> OwnRegion | None:
        """This engine's region, for its figures (`len`, `layout.slots`, `evicted`); None while there is none."""
        return self._link.region

    def take_changes(self) -> list[StoreChange]:
        """The blocks that have come to this engine's region or gone from it since the last call; the latest 100,000."""
        taken = []
        while self._changes:
            taken.append(self._changes.popleft())
        return taken

    # --- questions: they wait for nobody ---

    def leading(self, keys: Sequence[bytes], namespaces: Sequence[Namespace] = ()) -> int:
        """How many of the first blocks can be read now: from the own region, a sibling's or another node.

        Args:
            keys: of consecutive blocks of a sequence.
            namespaces: in all of which a block must be there, such as those of all ranks; by default the store's.
        """
        found = 0
        with self._outcomes.contained("look_failed"):
            digests = [self._digest(namespace) for namespace in namespaces or (self.namespace,)]
            found = self._run(keys, digests, 0)
            siblings = self._link.siblings
            if found < len(keys) and siblings is not None and siblings.look():
                found = self._run(keys, digests, found)
        return found

    def has(self, key: bytes, namespace: Namespace | None = None) -> bool:
        """Whether one block can be read now, as `leading` says."""
        return self.leading([key], [namespace or self.namespace]) == 1

    # --- storing ---

    def put(
        self,
        keys: Sequence[bytes],
        blocks: Sequence[BlockBytes],
        parent: bytes | None = None,
        namespace: Namespace | None = None,
    ) -> "Future[list[bool]]":
        """Stores blocks in the background.

        Args:
            keys: of consecutive blocks of a sequence.
            blocks: the bytes of each. They must not change before the future is done.
            parent: key of the block before the first one, so that it outlives what continues it; None: of none that is known.
            namespace: of the blocks; by default the store's.

        Returns:
            A future of whether each block is in the store then.
        """

        def store() -> list[bool]:
            with self._outcomes.contained("store_failed", len(keys)):
                if len(keys) != len(blocks):
                    raise InvalidArgument("blocks", f"there are {len(keys)} keys and {len(blocks)} blocks")
                sources = [checked_bytes(block, self.block_bytes) for block in blocks]
                names = [block_key(self._digest(namespace or self.namespace), key) for key in keys]
                writes = self.begin(keys, parent, namespace)
                begun = [write for write in writes if write is not None]
                try:
                    for write, source in zip(writes, sources, strict=True):
                        if write is not None:
                            write.payload[:] = source
                    self._check_in(begun)
                except BaseException:
                    self.abandon(begun)
                    raise
                return [self._link.finds(name) for name in names]
            return [False] * len(keys)

        future = self._stores.submit(len(keys) * self.block_bytes, store)
        if future is None:
            self._outcomes.add("store_refused", len(keys))
            return done([False] * len(keys))
        return future

    def begin(
        self, keys: Sequence[bytes], parent: bytes | None = None, namespace: Namespace | None = None
    ) -> list[BlockWrite | None]:
        """Slots into which the caller writes blocks itself; see `put`. Each must end by `commit` or `abandon`.

        Returns:
            For each block, where to write it; None if it need not be written, because it is there, or cannot be.
        """
        with self._outcomes.contained("store_failed", len(keys)):
            labels = label_chain(self._digest(namespace or self.namespace), keys, parent)
            region = self._link.region
            if region is not None:
                region.use([label.key for label in labels])
                missing = [label for label in labels if not self._link.finds_near(label.key)]
                writes = {write.label.key: write for write in region.begin(missing)}
                self._outcomes.add("stored_already", len(labels) - len(missing))
                self._outcomes.add("store_no_room", len(missing) - len(writes))
                return [writes.get(label.key) for label in labels]
            self._outcomes.add("store_no_room", len(keys))
        return [None] * len(keys)

    def commit(self, writes: Sequence[BlockWrite], ready: Callable[[], object] | None = None) -> "Future[bool]":
        """The blocks have been written; they are checked in, and found by everybody, in the background.

        Args:
            writes: from `begin`.
            ready: waits until the bytes have really arrived, such as `synchronize` of a device's event.

        Returns:
            A future of whether they are in the store then.
        """

        def check_in() -> bool:
            with self._outcomes.contained("store_failed", len(writes)):
                if ready is not None:
                    ready()
                self._check_in(writes)
                return True
            self.abandon(writes)
            return False

        future = self._stores.submit(len(writes) * self.block_bytes, check_in) if writes else done(True)
        if future is None:
            self._outcomes.add("store_refused", len(writes))
            self.abandon(writes)
            return done(False)
        return future

    def abandon(self, writes: Sequence[BlockWrite]) -> None:
        """Blocks that were begun will not be written. Nothing happens to those that were committed already."""
        with self._outcomes.contained("store_failed", len(writes)):
            for write in writes:
                write.region.abandon([write])

    # --- loading ---

    def get(
        self, keys: Sequence[bytes], targets: Sequence[BlockBytes], namespace: Namespace | None = None
    ) -> "Future[list[bool]]":
        """Copies blocks to memory of the caller, in the background.

        Args:
            keys: of consecutive blocks of a sequence.
            targets: where each goes, writable and as long as a block. Worth nothing where the result is False.
            namespace: of the blocks; by default the store's.

        Returns:
            A future of whether each block has been copied; its checksum was right then.
        """
        with self._outcomes.contained("load_failed", len(keys)):
            arrays = [checked_bytes(target, self.block_bytes) for target in targets]
            if len(arrays) != len(keys):
                raise InvalidArgument("targets", f"there are {len(keys)} keys and {len(arrays)} targets")
            return self.load(keys, lambda number, payload: np.copyto(arrays[number], payload), namespace)
        return done([False] * len(keys))

    def load(self, keys: Sequence[bytes], deliver: Deliver, namespace: Namespace | None = None) -> "Future[list[bool]]":
        """Hands the bytes of blocks to the caller, in the background; for those who copy them to a device, or to many places.

        Args:
            keys: of consecutive blocks of a sequence.
            deliver: called with the number of a key and its block's bytes (uint8, to be read during the call only), on several
                threads at once, in no order, and only with bytes whose checksum is right. If it raises, the block has failed.
            namespace: of the blocks; by default the store's.

        Returns:
            A future of whether each block has been delivered.
        """
        with self._outcomes.contained("load_failed", len(keys)):
            labels = label_chain(self._digest(namespace or self.namespace), keys, None)
            region = self._link.region
            if region is not None:
                region.use([label.key for label in labels])
            return self._loader.load(labels, deliver)
        return done([False] * len(keys))

    # --- the rest ---

    def touch(self, keys: Sequence[bytes], namespace: Namespace | None = None) -> None:
        """Blocks of one sequence, first to last, have been used elsewhere: they are evicted later."""
        with self._outcomes.contained("look_failed"):
            region, digest = self._link.region, self._digest(namespace or self.namespace)
            if region is not None:
                region.use([block_key(digest, key) for key in keys])

    def clear(self) -> int:
        """Drops all blocks of this engine's region but those that are being read. Returns how many."""
        region = self._link.region
        return 0 if region is None else region.clear()

    def close(self) -> None:
        """Ends all threads. The region's blocks stay for others, and for the next process of this engine, `keep_s` seconds."""
        self._loader.close()
        self._stores.close()
        self._link.stop()

    def _digest(self, namespace: Namespace) -> bytes:
        digest = self._digests.get(namespace)
        if digest is None:
            if len(self._digests) >= _MAX_DIGESTS:
                self._digests.clear()
            digest = self._digests[namespace] = namespace.digest()
        return digest

    def _run(self, keys: Sequence[bytes], digests: Sequence[bytes], first: int) -> int:
        for number in range(first, len(keys)):
            if not all(self._link.finds(block_key(digest, keys[number])) for digest in digests):
                return number
        return len(keys)

    def _check_in(self, writes: Sequence[BlockWrite]) -> None:
        for write in writes:
            write.region.commit([write])
        self._outcomes.add("stored", len(writes))

    def _changed(self, label: BlockLabel, residency: Residency) -> None:
        self._changes.append(StoreChange(label.namespace, engine_key(label), bool(residency.tiers)))
