"""`PbkvHiCache`: our store as storage of SGLang's hierarchical cache (`--hicache-storage-backend dynamic`).

A False, a None or a smaller number is always a right answer: SGLang then computes what it does not get.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import sglang
import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.integrations.engine_store import EngineStore, StoreSettings
from pbkv_cluster.integrations.engine_versions import check_version
from pbkv_cluster.integrations.sglang.pages import HostPool, Pages, bytes_of, data_types

log = logging.getLogger(__name__)

_OPTIONS = "pbkv"  # key of our options in `--hicache-storage-backend-extra-config`


class PbkvHiCache(HiCacheStorage):
    """Pages in the node's arena, for all engines of the node and, with Redis, for other nodes. Safe for threads."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any] | None = None) -> None:
        """Args:
            storage_config: SGLang's. Of `extra_config`, `pbkv` holds the options of `StoreSettings`, and `revision`: anything
                that changes with the model's weights.
            kwargs: what else SGLang gives to a backend; nothing of it is used.

        Raises:
            InvalidArgument: an option is wrong, or this version of SGLang was not tested; names the field.
        """
        check_version("sglang", sglang.__version__, load(env=os.environ).config.plugins.any_version)
        options = dict((storage_config.extra_config or {}).get(_OPTIONS, {}))
        revision = options.pop("revision", "")
        if not isinstance(revision, str):
            raise InvalidArgument(f"{_OPTIONS}.revision", f"must be a string, got {type(revision).__name__}")
        self._revision = revision
        self._settings = StoreSettings.of(options)
        self._config = storage_config
        self._stores: list[EngineStore] = []
        self._pages: dict[str, Pages] = {}  # by the name of the pool

    # --- pools ---

    def register_mem_pool_host(self, mem_pool_host: HostPool) -> None:
        super().register_mem_pool_host(mem_pool_host)
        self._register(PoolName.KV.value, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: HostPool, host_pool_name: PoolName) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if str(host_pool_name) not in self._pages:
            self._register(str(host_pool_name), host_pool)

    def _register(self, name: str, pool: HostPool) -> None:
        page = pool.get_dummy_flat_data_page()
        config = self._config
        shared = config.is_mla_model and name != PoolName.MAMBA.value  # all ranks hold the same
        rank = f"{config.dcp_rank}/{config.dcp_size}" if shared else f"{config.tp_rank}/{config.tp_size}"
        namespace = Namespace(
            config.model_name or "",
            self._revision,
            f"{page.dtype} {data_types(pool)}",
            f"sglang/{name}/{getattr(pool, 'layout', '')}/{config.should_split_heads}",
            pool.page_size,
            f"{rank}.pp{config.pp_rank}/{config.pp_size}.cp{config.attn_cp_rank}/{config.attn_cp_size}",
        )
        store = EngineStore(self._settings, namespace, bytes_of(page).nbytes)
        self._stores.append(store)
        self._pages[name] = Pages(pool, store)

    @property
    def _kv(self) -> Pages:
        return self._pages[PoolName.KV.value]

    # --- questions ---

    def exists(self, key: str) -> bool:
        return self._kv.leading([key]) == 1

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        return self._kv.leading(keys)

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        kv_pages = self._kv.leading(keys)
        hits = {PoolName.KV: kv_pages} if kv_pages else {}
        restorable = list(range(1, kv_pages + 1))  # lengths of prefixes
        for transfer in pool_transfers or []:
            pages = self._pages.get(str(transfer.name))
            held = [False] * kv_pages if pages is None else pages.held(keys[:kv_pages])
            possible = _possible_lengths(held, transfer)
            if possible:
                hits[transfer.name] = max(possible)
            restorable = [length for length in restorable if length in possible]
        return PoolTransferResult(restorable[-1] if restorable else 0, hits, restorable)

    # --- pages of the pools, copied once ---

    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        return self._kv.read(keys, host_indices)

    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        if not self._config.is_storage_writer:
            return [True] * len(keys)
        return self._kv.write(keys, host_indices, _parent(extra_info))

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        return self._each(transfers, Pages.read)

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        return self._each(transfers, lambda pages, keys, indices: pages.write(keys, indices, None))

    def _each(
        self, transfers: list[PoolTransfer], act: Callable[[Pages, Sequence[str], torch.Tensor], list[bool]]
    ) -> dict[str, list[bool]]:
        results = dict[str, list[bool]]()
        for transfer in transfers:
            keys, pages = transfer.keys or [], self._pages.get(str(transfer.name))
            if pages is None or transfer.host_indices is None:
                results[transfer.name] = [False] * len(keys)
            else:
                results[transfer.name] = act(pages, keys, transfer.host_indices)
        return results

    # --- pages in tensors of their own ---

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        return self.batch_get([key], None if target_location is None else [target_location])[0]

    def batch_get(self, keys: list[str], target_locations: Any = None, target_sizes: Any = None) -> list[torch.Tensor | None]:
        targets = target_locations
        if targets is None:
            targets = [self.mem_pool_host.get_dummy_flat_data_page() for _ in keys]
        return [target if got else None for target, got in zip(targets, self._kv.get(keys, targets), strict=True)]

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return self.batch_set([key], [value])

    def batch_set(self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None) -> bool:
        return not self._config.is_storage_writer or all(self._kv.put(keys, values))

    # --- the rest ---

    def clear(self) -> None:
        for store in self._stores:
            store.clear()

    def get_stats(self) -> None:
        return None

    def close(self) -> None:
        """Ends the threads of all stores."""
        for store in self._stores:
            store.close()
        self._stores, self._pages = [], {}


def _possible_lengths(held: list[bool], transfer: PoolTransfer) -> set[int]:
    """Lengths of prefixes that a pool can restore, by the pages that the store has of it."""
    if transfer.hit_policy is PoolHitPolicy.TRAILING_PAGES:
        trailing = max(1, len(transfer.keys or ()))
        return {length for length in range(1, len(held) + 1) if all(held[max(0, length - trailing) : length])}
    if transfer.hit_policy is PoolHitPolicy.ALL_PAGES:
        return set(range(1, (held.index(False) if False in held else len(held)) + 1))
    raise ValueError(f"unsupported pool hit policy: {transfer.hit_policy}")


def _parent(extra_info: HiCacheStorageExtraInfo | None) -> str | None:
    prefix = None if extra_info is None else extra_info.prefix_keys
    return prefix[-1] if prefix else None
