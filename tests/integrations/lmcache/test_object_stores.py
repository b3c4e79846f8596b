"""Objects of LMCache in a real store, and the tasks that carry them."""

import os
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from pbkv_cluster.integrations.lmcache.object_stores import MAX_STORES, ObjectStores
from pbkv_cluster.integrations.lmcache.tasks import Tasks
from tests.integrations.engine_store.engines import node, settings
from tests.polling import wait_for

SIZE = 32 << 10
BF16 = ["torch.bfloat16"]


@dataclass
class Key:
    """An object's key, as LMCache has it."""

    chunk_hash: bytes
    model_name: str = "m"
    kv_rank: int = 0
    object_group_id: int = 0
    cache_salt: str = ""


@pytest.fixture
def stores() -> Iterator[ObjectStores]:
    with node(settings(region_bytes=1 << 20, arena_bytes=32 << 20)) as of:
        opened = ObjectStores(of, "r")
        yield opened
        opened.close()


def _object(number: int, size: int = SIZE) -> memoryview:
    return memoryview(bytes([number]) * size)


def test_objects_come_back_by_their_whole_key(stores: ObjectStores) -> None:
    key = Key(b"a" * 8)
    others = [replace(key, kv_rank=1), replace(key, cache_salt="s"), replace(key, chunk_hash=b"b" * 8)]
    keys = [key, *others]
    assert stores.put(keys, [_object(number) for number in range(4)], BF16 * 4) == [True] * 4
    targets = [bytearray(SIZE) for _ in keys]
    assert stores.get(keys, [memoryview(target) for target in targets], BF16 * 4) == [True] * 4
    assert [target[0] for target in targets] == [0, 1, 2, 3]
    unknown = [replace(key, cache_salt="t"), replace(key, model_name="n"), replace(key, object_group_id=1)]
    assert stores.held([key, *unknown], [SIZE] * 4, BF16 * 4) == [True, False, False, False]


def test_an_object_of_another_length_is_another_object(stores: ObjectStores) -> None:
    key = Key(b"a" * 8)
    assert stores.put([key], [_object(1)], BF16) == [True]
    assert stores.held([key], [SIZE * 2], BF16) == [False]
    assert stores.get([key], [memoryview(bytearray(SIZE * 2))], BF16) == [False]


def test_an_object_of_another_data_type_is_another_object(stores: ObjectStores) -> None:
    key, target = Key(b"a" * 8), memoryview(bytearray(SIZE))
    assert stores.put([key], [_object(1)], BF16) == [True]
    assert stores.held([key] * 2, [SIZE] * 2, ["torch.float16", *BF16]) == [False, True]
    assert stores.get([key], [target], ["torch.float16"]) == [False]
    assert stores.put([key], [_object(2)], ["torch.float16"]) == [True]
    assert stores.get([key], [target], BF16) == [True]
    assert target[0] == 1


def test_bytes_whose_type_nobody_tells_are_not_stored(caplog: pytest.LogCaptureFixture) -> None:
    with node(settings(region_bytes=1 << 20, arena_bytes=8 << 20)) as of:
        for revision, stored in (("", False), ("weights, fp8_e4m3", True)):
            stores = ObjectStores(of, revision)
            assert (
                stores.put([Key(b"a" * 8)] * 2, [_object(1)] * 2, ["torch.uint8", "torch.bfloat16 torch.int8"]) == [stored] * 2
            )
            stores.close()
    assert sum("set revision" in record.message for record in caplog.records) == 2


def test_objects_of_too_many_kinds_are_not_stored(stores: ObjectStores, caplog: pytest.LogCaptureFixture) -> None:
    keys = [Key(b"a" * 8, model_name=f"m{number}") for number in range(MAX_STORES + 2)]
    held = stores.held(keys, [SIZE] * len(keys), BF16 * len(keys))
    assert held == [False] * len(keys)
    assert stores.put(keys[-1:], [_object(1)], BF16) == [False]
    assert sum("are not stored" in record.message for record in caplog.records) == 2


class Notifier:
    """An event file descriptor."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._descriptor

    def notify(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        os.close(self._descriptor)


def test_a_result_is_told_and_given_out_once() -> None:
    tasks: Tasks[str] = Tasks("t", Notifier())
    goes_on = threading.Event()

    def work() -> str:
        goes_on.wait(10.0)
        return "done"

    first = tasks.submit(work, lambda: "failed")
    assert tasks.pop(first) is None
    goes_on.set()
    wait_for(lambda: os.eventfd_read(tasks.notifier.fileno()) == 1 if _readable(tasks) else False)
    assert [tasks.pop(first), tasks.pop(first)] == ["done", None]
    tasks.close()


def test_a_task_that_raises_has_the_result_of_a_failure() -> None:
    tasks: Tasks[str] = Tasks("t", Notifier())
    number = tasks.submit(lambda: str(1 // 0), lambda: "failed")
    found = dict[int, str]()
    wait_for(lambda: bool(found.update(tasks.pop_all()) or found))
    assert found == {number: "failed"}
    tasks.close()


def _readable(tasks: "Tasks[str]") -> bool:
    return bool(select.select([tasks.notifier.fileno()], [], [], 0)[0])
