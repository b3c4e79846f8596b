"""Pages of SGLang's pools in a real store."""

from collections.abc import Iterator

import pytest
import torch

from pbkv_cluster.integrations.engine_store import EngineStore
from pbkv_cluster.integrations.sglang.pages import Pages, data_types
from tests.integrations.engine_store.engines import SPACE, node, settings
from tests.integrations.sglang.pools import PAGE_BYTES, Pool, indices


@pytest.fixture(scope="module")
def shared() -> Iterator[EngineStore]:
    with node(settings(region_bytes=8 << 20)) as of:
        store = EngineStore(of, SPACE, PAGE_BYTES)
        yield store
        store.close()


@pytest.fixture
def store(shared: EngineStore) -> EngineStore:
    shared.clear()
    return shared


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_pages_come_back_into_other_places(store: EngineStore, layout: str) -> None:
    pool, other = Pool(4, layout), Pool(4, layout)
    values = [pool.fill(page, 100 * page) for page in range(3)]
    assert Pages(pool, store).write(["a", "b", "c"], indices(0, 1, 2), None) == [True] * 3
    pages = Pages(other, store)
    assert pages.leading(["a", "b", "x", "c"]) == 2
    assert pages.held(["x", "c"]) == [False, True]
    assert pages.read(["c", "x", "a"], indices(0, 1, 3)) == [True, False, True]
    assert torch.equal(other.get_data_page(0).reshape(-1), pool.get_data_page(2 * 32).reshape(-1))
    assert torch.equal(other.get_data_page(3 * 32), values[0])
    assert not other.get_data_page(32).any()


def test_pages_in_tensors_are_the_same_pages(store: EngineStore) -> None:
    pool = Pool(2)
    pages, value = Pages(pool, store), pool.fill(1, 7)
    assert pages.put(["a"], [value]) == [True]
    assert pages.read(["a"], indices(0)) == [True]
    assert torch.equal(pool.get_data_page(0), value)
    target = pool.get_dummy_flat_data_page()
    assert pages.get(["a", "b"], [target, pool.get_dummy_flat_data_page()]) == [True, False]
    assert torch.equal(target, value)


def test_indices_of_another_number_of_pages_are_refused(store: EngineStore) -> None:
    pages = Pages(Pool(2), store)
    assert pages.write(["a", "b"], indices(0), None) == [False, False]
    assert pages.read(["a"], indices(0, 1)) == [False]
    assert pages.leading(["a"]) == 0


def test_a_pool_that_fails_costs_its_pages_and_leaves_no_slot_behind(store: EngineStore) -> None:
    pool = Pool(2)
    pages = Pages(pool, store)
    with pytest.raises(RuntimeError):
        pages.write(["a"], indices(5), None)  # the pool has no such page
    assert pages.leading(["a"]) == 0
    assert pages.write(["a"], indices(0), None) == [True]


def test_kinds_of_8_bits_are_told_apart_though_their_pages_look_alike() -> None:
    kinds = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8]
    pools = [Pool(2, device_dtype=kind) for kind in kinds]
    assert len({pool.get_dummy_flat_data_page().dtype for pool in pools}) == 1
    assert len({data_types(pool) for pool in pools}) == len(kinds)
    assert data_types(pools[0]) == data_types(Pool(4, device_dtype=kinds[0]))
