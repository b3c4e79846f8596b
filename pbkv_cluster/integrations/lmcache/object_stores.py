"""Objects of LMCache as blocks of our store: one `EngineStore` for each length of the objects of each model."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.integrations.engine_store import EngineStore, StoreSettings

log = logging.getLogger(__name__)

MAX_STORES = 8
"""Each takes a region of `region_bytes`. Objects of further models and lengths are not stored."""


class ObjectKey(Protocol):
    """What is used of LMCache's `ObjectKey`."""

    chunk_hash: bytes
    model_name: str
    kv_rank: int
    object_group_id: int
    cache_salt: str


class _Kind(NamedTuple):
    model: str
    group: int
    size: int  # bytes
    dtypes: str


_DISGUISES = frozenset({"torch.uint8", "torch.int8"})  # in which engines keep KV of any type of 8 bits


class ObjectStores:
    """Puts, finds and gets objects. Safe for threads."""

    def __init__(self, settings: StoreSettings, revision: str) -> None:
        """Args:
        settings: of each store.
        revision: anything that changes with the models' weights, and with the type of KV whose tensors are bytes; without
            one, such objects are not stored.
        """
        self._settings = settings
        self._revision = revision
        self._stores: dict[_Kind, EngineStore] = {}
        self._refused: set[_Kind] = set()
        self._lock = threading.Lock()

    def put(self, keys: Sequence[ObjectKey], objects: Sequence[memoryview], dtypes: Sequence[str]) -> list[bool]:
        """Stores objects, and waits until they are there. Returns which are."""

        def put(store: EngineStore, names: Sequence[bytes], namespace: Namespace, at: Sequence[int]) -> list[bool]:
            return store.put(names, [objects[number] for number in at], namespace=namespace).result()

        return self._each(keys, [len(each) for each in objects], dtypes, put)

    def get(self, keys: Sequence[ObjectKey], targets: Sequence[memoryview], dtypes: Sequence[str]) -> list[bool]:
        """Copies objects to memory of the caller, and waits for it. Returns which have been copied."""

        def get(store: EngineStore, names: Sequence[bytes], namespace: Namespace, at: Sequence[int]) -> list[bool]:
            return store.get(names, [targets[number] for number in at], namespace).result()

        return self._each(keys, [len(each) for each in targets], dtypes, get)

    def held(self, keys: Sequence[ObjectKey], sizes: Sequence[int], dtypes: Sequence[str]) -> list[bool]:
        """Which objects, of these lengths in bytes and data types, can be read now."""

        def held(store: EngineStore, names: Sequence[bytes], namespace: Namespace, at: Sequence[int]) -> list[bool]:
            return [store.has(name, namespace) for name in names]

        return self._each(keys, sizes, dtypes, held)

    def counts(self) -> dict[str, int]:
        """Blocks by what became of them, over all stores; see `EngineStore.counts`."""
        total: defaultdict[str, int] = defaultdict(int)
        for store in self._all():
            for reason, count in store.counts.items():
                total[reason] += count
        return dict(total)

    def problems(self) -> list[str]:
        """Why stores cannot store or read."""
        return [store.problem for store in self._all() if store.problem]

    def close(self) -> None:
        """Ends the threads of all stores."""
        for store in self._all():
            store.close()

    def _all(self) -> list[EngineStore]:
        with self._lock:
            return list(self._stores.values())

    def _each(
        self,
        keys: Sequence[ObjectKey],
        sizes: Sequence[int],
        dtypes: Sequence[str],
        act: Callable[[EngineStore, Sequence[bytes], Namespace, Sequence[int]], list[bool]],
    ) -> list[bool]:
        """Calls `act` with the keys of each store and namespace; False for keys that have no store."""
        results, groups = [False] * len(keys), dict[tuple[_Kind, int, str], list[int]]()
        for number, (key, size, types) in enumerate(zip(keys, sizes, dtypes, strict=True)):
            kind = _Kind(key.model_name, key.object_group_id, size, types)
            groups.setdefault((kind, key.kv_rank, key.cache_salt), []).append(number)
        for (kind, rank, salt), numbers in groups.items():
            store = self._store(kind)
            if store is not None:
                names = [_name(keys[number]) for number in numbers]
                for number, done in zip(numbers, act(store, names, self._namespace(kind, rank, salt), numbers), strict=True):
                    results[number] = done
        return results

    def _store(self, kind: _Kind) -> EngineStore | None:
        with self._lock:
            store = self._stores.get(kind)
            if not self._revision and not _DISGUISES.isdisjoint(kind.dtypes.split()):
                if kind not in self._refused:
                    self._refused.add(kind)
                    log.warning(
                        "objects of %s are %s, which hides their type: set revision to store them", kind.model, kind.dtypes
                    )
                return None
            if store is None and len(self._stores) < MAX_STORES:
                store = self._stores[kind] = EngineStore(self._settings, self._namespace(kind, 0, ""), kind.size)
            elif store is None and kind not in self._refused:
                self._refused.add(kind)
                log.warning("objects of %s with %d bytes are not stored: there are %d kinds", kind.model, kind.size, MAX_STORES)
            return store

    def _namespace(self, kind: _Kind, rank: int, salt: str) -> Namespace:
        # LMCache's hash is of all tokens up to the chunk's end; what else decides the bytes shows in model, group, length
        # and data types.
        return Namespace(kind.model, self._revision, kind.dtypes, f"lmcache/{kind.group}/{kind.size}", 0, str(rank), salt)


def _name(key: ObjectKey) -> bytes:
    return hashlib.blake2b(key.chunk_hash, digest_size=32).digest()
