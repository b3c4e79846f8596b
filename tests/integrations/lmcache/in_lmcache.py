"""Our adapter in LMCache's own code, run where its wheel is unpacked: `in_lmcache.py NAME-OF-STORE`. Silent if all is well."""

import select
import sys
from typing import Any

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.l2_adapters.factory import create_l2_adapter_from_registry
from lmcache.v1.distributed.l2_adapters.plugin_l2_adapter import PluginL2AdapterConfig
from lmcache.v1.memory_management import MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd

SHAPE, DTYPE = torch.Size([2, 4, 16, 32]), torch.bfloat16


def memory(number: int) -> TensorMemoryObj:
    """An object with contents of its own, in a larger piece of memory, as LMCache's allocators give out."""
    size = SHAPE.numel() * DTYPE.itemsize
    metadata = MemoryObjMetadata(SHAPE, DTYPE, 0, size + 512, 1, shapes=[SHAPE], dtypes=[DTYPE])
    return TensorMemoryObj(torch.full((size + 512,), number, dtype=torch.uint8), metadata, None)


def key(number: int, salt: str = "") -> ObjectKey:
    return ObjectKey(number.to_bytes(4, "big"), "m", 0, cache_salt=salt)


def wait(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 30.0)[0], "no event"
    consume_fd(descriptor)


def look_up(adapter: Any, *keys: ObjectKey) -> list[int]:
    task = adapter.submit_lookup_and_lock_task(list(keys), {0: MemoryLayoutDesc([SHAPE], [DTYPE])})
    wait(adapter.get_lookup_and_lock_event_fd())
    found = adapter.query_lookup_and_lock_result(task)
    assert adapter.query_lookup_and_lock_result(task) is None  # only once
    return [number for number in range(len(keys)) if found.test(number)]


def main(name: str) -> None:
    config = PluginL2AdapterConfig.from_dict(
        {
            "module_path": "pbkv_cluster.integrations.lmcache.adapter",
            "class_name": "PbkvL2Adapter",
            "adapter_params": {"name": name, "region_bytes": 2 << 20, "redis_url": "", "revision": "r"},
        }
    )
    one, two = create_l2_adapter_from_registry(config), create_l2_adapter_from_registry(config)
    one.set_backend_identity("plugin")
    descriptors = {
        descriptor
        for each in (one, two)
        for descriptor in (each.get_store_event_fd(), each.get_lookup_and_lock_event_fd(), each.get_load_event_fd())
    }
    assert len(descriptors) == 6
    assert look_up(one, key(1)) == []
    task = one.submit_store_task([key(1), key(2)], [memory(1), memory(2)])
    wait(one.get_store_event_fd())
    (result,) = one.pop_completed_store_tasks().items()
    assert (result[0], result[1].is_successful()) == (task, True)
    assert one.get_usage().total_bytes_used == result[1].bytes_transferred() == 2 * memory(1).get_size()
    assert look_up(two, key(1), key(3), key(2), key(1, "salt")) == [0, 2]
    target, absent = memory(0), memory(0)
    task = two.submit_load_task([key(2), key(3)], [target, absent])
    wait(two.get_load_event_fd())
    loaded = two.query_load_result(task)
    assert [loaded.test(0), loaded.test(1)] == [True, False]
    assert set(bytes(target.byte_array)) == {2}
    assert not target.raw_data[target.get_size() :].any(), "beyond the object"
    two.submit_unlock([key(2)])
    assert two.report_status()["is_healthy"]
    for each in (one, two):
        each.close()


if __name__ == "__main__":
    main(sys.argv[1])
