"""`PbkvL2Adapter`: our store as second level of LMCache (`--l2-adapter` of type `plugin`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lmcache.lmcache_native import Bitmap
from lmcache.utils import VERSION
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc, L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.platform import create_event_notifier

from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.integrations.engine_store import StoreSettings
from pbkv_cluster.integrations.engine_versions import check_version
from pbkv_cluster.integrations.lmcache.object_stores import ObjectStores
from pbkv_cluster.integrations.lmcache.tasks import Tasks


class PbkvL2Adapter(L2AdapterInterface):
    """Objects in the node's arena. The store evicts on its own: a lock keeps nothing, and what has gone is not loaded."""

    def __init__(self, config: Mapping[str, Any], l1_memory_desc: L1MemoryDesc | None = None) -> None:
        """Args:
            config: `adapter_params`: the options of `StoreSettings`, and `revision`: anything that changes with the weights.
            l1_memory_desc: of LMCache's own memory; not used.

        Raises:
            InvalidArgument: an option is wrong, or this version of LMCache was not tested; names the field.
        """
        super().__init__()
        check_version("lmcache", VERSION, load(env=os.environ).config.plugins.any_version)
        options = dict(config)
        revision = options.pop("revision", "")
        if not isinstance(revision, str):
            raise InvalidArgument("revision", f"must be a string, got {type(revision).__name__}")
        self._stores = ObjectStores(StoreSettings.of(options), revision)
        self._store_tasks: Tasks[L2StoreResult] = Tasks("pbkv-l2-store", create_event_notifier())
        self._lookup_tasks: Tasks[Bitmap] = Tasks("pbkv-l2-lookup", create_event_notifier())
        self._load_tasks: Tasks[Bitmap] = Tasks("pbkv-l2-load", create_event_notifier())

    def get_store_event_fd(self) -> int:
        return self._store_tasks.notifier.fileno()

    def get_lookup_and_lock_event_fd(self) -> int:
        return self._lookup_tasks.notifier.fileno()

    def get_load_event_fd(self) -> int:
        return self._load_tasks.notifier.fileno()

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        def store() -> L2StoreResult:
            buffers = [_buffer(each) for each in objects]
            stored = self._stores.put(keys, buffers, [_dtypes(each.get_dtypes()) for each in objects])
            done = [(key, len(buffer)) for key, buffer, is_there in zip(keys, buffers, stored, strict=True) if is_there]
            if done:
                self._notify_keys_stored([key for key, _ in done], [size for _, size in done])
            return L2StoreResult(all(stored), sum(size for _, size in done))

        return self._store_tasks.submit(store, lambda: L2StoreResult(False, 0))

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        return self._store_tasks.pop_all()

    def submit_lookup_and_lock_task(self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]) -> int:
        sizes = {group: _size(layout) for group, layout in group_layout_descs.items()}
        dtypes = {group: _dtypes(layout.dtypes) for group, layout in group_layout_descs.items()}

        def look_up() -> Bitmap:
            known = [number for number, key in enumerate(keys) if key.object_group_id in sizes]
            asked = [keys[number] for number in known]
            groups = [key.object_group_id for key in asked]
            held = self._stores.held(asked, [sizes[group] for group in groups], [dtypes[group] for group in groups])
            return _bitmap(len(keys), [number for number, is_there in zip(known, held, strict=True) if is_there])

        return self._lookup_tasks.submit(look_up, lambda: Bitmap(len(keys)))

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        return self._lookup_tasks.pop(task_id)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Nothing is locked."""

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        def load_objects() -> Bitmap:
            dtypes = [_dtypes(each.get_dtypes()) for each in objects]
            loaded = self._stores.get(keys, [_buffer(each) for each in objects], dtypes)
            found = [number for number, is_there in enumerate(loaded) if is_there]
            if found:
                self._notify_keys_accessed([keys[number] for number in found])
            return _bitmap(len(keys), found)

        return self._load_tasks.submit(load_objects, lambda: Bitmap(len(keys)))

    def query_load_result(self, task_id: int) -> Bitmap | None:
        return self._load_tasks.pop(task_id)

    def report_status(self) -> dict[str, Any]:
        problems = self._stores.problems()
        return {"is_healthy": not problems, "type": "PbkvL2Adapter", "problems": problems, **self._stores.counts()}

    def close(self) -> None:
        for tasks in (self._store_tasks, self._lookup_tasks, self._load_tasks):
            tasks.close()
        self._stores.close()


def _buffer(memory: MemoryObj) -> memoryview:
    """The bytes of an object, without what its allocator has added to align it."""
    return memoryview(memory.byte_array)[: memory.get_size()]


def _dtypes(dtypes: Sequence[object]) -> str:
    """Data types of an object's tensors, as the store names them."""
    return " ".join(map(str, dtypes))


def _size(layout: MemoryLayoutDesc) -> int:
    """Bytes of an object."""
    return sum(shape.numel() * dtype.itemsize for shape, dtype in zip(layout.shapes, layout.dtypes, strict=True))


def _bitmap(size: int, found: Sequence[int]) -> Bitmap:
    bitmap = Bitmap(size)
    bitmap.batched_set(found)
    return bitmap
