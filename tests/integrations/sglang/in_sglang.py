"""Our plug-ins in SGLang's own code, run where its wheel is unpacked: `in_sglang.py NAME-OF-STORE`. Silent if all is well.

SGLang itself does not start without a GPU's packages. What only imports these gets empty modules instead.
"""

import importlib.machinery
import importlib.util
import sys
import types
from array import array
from typing import Any

ABSENT = {"torchvision", "IPython", "gguf"}


class EmptyType(type):
    """A class that has every attribute that is asked for."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return EmptyType(name, (), {"__init__": lambda self, *_, **__: None})


class EmptyModule(types.ModuleType):
    """A module that has every class that is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return EmptyType(name, (), {"__init__": lambda self, *_, **__: None})


class Finder:
    """Finds empty modules."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self) if name.split(".")[0] in ABSENT else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> types.ModuleType:
        module = EmptyModule(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def prepare() -> None:
    """Lets SGLang's modules be imported."""
    from transformers.utils import import_utils

    for name in ("is_torchvision_available", "is_torchvision_v2_available"):
        setattr(import_utils, name, lambda *_: False)
    ABSENT.difference_update([name for name in ABSENT if importlib.util.find_spec(name) is not None])
    sys.meta_path.insert(0, Finder())


def check_eviction() -> None:
    """SGLang's own tree evicts in our order."""
    from sglang.srt.arg_groups.choices import RADIX_EVICTION_POLICY_CHOICES
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey

    from pbkv_cluster.integrations.sglang.plugin import POLICY, register

    register()
    assert POLICY in RADIX_EVICTION_POLICY_CHOICES

    class Allocator:
        device = "cpu"

        def free_segment(self, value: Any, start_pos: int) -> None:
            freed.append(value.tolist())

    freed = list[Any]()
    tree = RadixCache(
        CacheInitParams(
            disable=False,
            req_to_token_pool=None,
            token_to_kv_pool_allocator=Allocator(),
            page_size=1,
            eviction_policy=POLICY,
            eviction_policy_config={"half_life_s": 1e9},
        )
    )

    import torch

    def insert(*tokens: int) -> None:
        tree.insert(InsertParams(key=RadixKey(token_ids=array("q", tokens)), value=torch.tensor(tokens)))

    for _ in range(3):
        insert(1, 2, 3)
    insert(4, 5, 6)  # more recent, but used once
    tree.evict(EvictParams(num_tokens=3))
    assert freed == [[4, 5, 6]], freed


def check_storage(name: str) -> None:
    """SGLang's factory makes our storage, and pages go through it in all of its ways."""
    import torch
    from sglang.srt.mem_cache.hicache_storage import (
        HiCacheStorageConfig,
        HiCacheStorageExtraInfo,
        PoolHitPolicy,
        PoolName,
        PoolTransfer,
    )
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    from tests.integrations.sglang.pools import Pool, indices
    from tests.polling import wait_for

    def storage(tp_rank: int = 0, is_mla_model: bool = False) -> Any:
        extra = {
            "backend_name": "pbkv",
            "module_path": "pbkv_cluster.integrations.sglang.hicache",
            "class_name": "PbkvHiCache",
            "interface_v1": 1,
            "pbkv": {"name": name, "region_bytes": 2 << 20, "redis_url": "", "revision": "r"},
        }
        config = HiCacheStorageConfig(
            tp_rank=tp_rank,
            tp_size=2,
            pp_rank=0,
            pp_size=1,
            attn_cp_rank=0,
            attn_cp_size=1,
            is_mla_model=is_mla_model,
            enable_storage_metrics=False,
            is_page_first_layout=True,
            model_name="m",
            extra_config=extra,
        )
        return StorageBackendFactory.create_backend("dynamic", config, None)

    pool, other = Pool(4), Pool(4)
    values = [pool.fill(page, 10 * page) for page in range(3)]
    one, two, rank = storage(), storage(), storage(tp_rank=1)
    for each, memory in ((one, pool), (two, other), (rank, Pool(4))):
        each.register_mem_pool_host(memory)
        each.register_mem_host_pool_v2(memory, PoolName.DRAFT)
        each.on_host_pools_registered()
    assert one.batch_set_v1(["a", "b"], indices(0, 1), HiCacheStorageExtraInfo(prefix_keys=None)) == [True, True]
    wait_for(lambda: bool(two.batch_exists(["a", "b", "c"]) == 2))  # a store looks at its siblings only now and then
    assert two.exists("a")
    assert rank.batch_exists(["a"]) == 0  # another rank's pages hold other heads
    fp8 = storage()
    fp8.register_mem_pool_host(Pool(4, device_dtype=torch.float8_e5m2))
    assert fp8.batch_get_v1(["a"], indices(0)) == [False]  # other values of the same bytes
    fp8.close()
    assert two.batch_get_v1(["a", "c"], indices(3, 0)) == [True, False]
    assert torch.equal(other.get_data_page(3 * 32), values[0])

    assert one.batch_set(["d"], [values[2]])
    wait_for(lambda: bool(two.exists("d")))
    target = pool.get_dummy_flat_data_page()
    (found,) = two.batch_get(["d"], [target])
    assert found is target
    assert torch.equal(target, values[2])
    assert two.batch_get(["x"], [pool.get_dummy_flat_data_page()]) == [None]
    assert one.set("e", values[1])
    wait_for(lambda: bool(two.exists("e")))
    assert torch.equal(two.get("e"), values[1])

    draft = PoolTransfer(name=PoolName.DRAFT, keys=["a"], host_indices=indices(2))
    assert one.batch_set_v2([draft]) == {PoolName.DRAFT: [True]}
    wait_for(lambda: bool(two.batch_exists_v2(["a"], [PoolTransfer(name=PoolName.DRAFT)]).kv_hit_pages))
    assert not torch.equal(other.get_data_page(32), values[2])
    result = two.batch_exists_v2(["a", "b"], [PoolTransfer(name=PoolName.DRAFT)])
    assert (result.kv_hit_pages, result.extra_pool_hit_pages) == (1, {PoolName.KV: 2, PoolName.DRAFT: 1})
    trailing = PoolTransfer(name=PoolName.DRAFT, keys=["b"], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    assert two.batch_exists_v2(["a", "b"], [trailing]).restorable_prefix_pages == [1]
    assert two.batch_get_v2([PoolTransfer(name=PoolName.DRAFT, keys=["a"], host_indices=indices(1))]) == {
        PoolName.DRAFT: [True]
    }
    assert torch.equal(other.get_data_page(32), values[2])

    shared = [storage(tp_rank=rank, is_mla_model=True) for rank in (0, 1)]
    for each in shared:
        each.register_mem_pool_host(pool)
    assert shared[1].batch_set_v1(["m"], indices(0)) == [True]  # not the writer: nothing happens
    assert shared[1].batch_exists(["m"]) == 0
    assert shared[0].batch_set_v1(["m"], indices(0)) == [True]
    wait_for(lambda: bool(shared[1].batch_exists(["m"]) == 1))
    one.clear()
    assert two.batch_get_v1(["a"], indices(3)) == [False]
    for each in (one, two, rank, *shared):
        each.close()


if __name__ == "__main__":
    prepare()
    check_eviction()
    check_storage(sys.argv[1])
