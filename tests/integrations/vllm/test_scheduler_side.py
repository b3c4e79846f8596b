"""Which blocks the scheduler's side plans to load and to store, with the store of a real node."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pbkv_cluster.integrations.engine_store import EngineStore, StoreSettings
from pbkv_cluster.integrations.vllm.options import ConnectorOptions
from tests.integrations.engine_store.engines import BLOCK, SPACE, block, node, settings
from tests.integrations.vllm.stand_in import (
    BLOCK_TOKENS,
    Blocks,
    FakeRequest,
    SchedulerSide,
    StepPlan,
    WorkerIntroduction,
    lora_keys,
    step,
)
from tests.polling import wait_for

TOKENS = list(range(13))  # three full blocks, and one token that is always computed


@pytest.fixture(scope="module")
def of() -> Iterator[StoreSettings]:
    with node(settings()) as of:
        yield of


class Engine:
    """A scheduler with its only worker's store."""

    def __init__(self, of: StoreSettings) -> None:
        self.store = EngineStore(of, SPACE, BLOCK)
        self.side = SchedulerSide(ConnectorOptions(of, False, "", True, 1), BLOCK_TOKENS, lora_keys, None)
        self.side.meet({(0, 0): WorkerIntroduction(SPACE, BLOCK)})

    def found(self, request: FakeRequest) -> int:
        """Tokens that can be loaded."""
        return self.side.get_num_new_matched_tokens(request, 0)[0]

    def compute(self, request: FakeRequest) -> StepPlan:
        """A step with all tokens of a request, whose blocks are stored."""
        plan = self.side.build_connector_meta(step(**{request.request_id: request.num_tokens}))
        for save in plan.saves:
            assert all(self.store.put(save.keys, [block(1)] * len(save.keys), save.parent).result(10.0))
        return plan

    def close(self) -> None:
        self.side.shutdown()
        self.store.close()


@pytest.fixture
def engines(of: StoreSettings) -> Iterator[tuple[Engine, Engine]]:
    pair = Engine(of), Engine(of)
    yield pair
    for each in pair:
        each.store.clear()
        each.close()


def test_after_a_reset_nothing_is_shared_with_engines_of_the_weights_before(engines: tuple[Engine, Engine]) -> None:
    one, other = engines
    first = FakeRequest("first", TOKENS)
    assert one.found(first) == 0
    one.compute(first)
    wait_for(lambda: other.found(FakeRequest("sibling", TOKENS)) == 12)
    assert other.side.reset_cache()
    assert other.side.build_connector_meta(step()).clear
    again = FakeRequest("again", TOKENS)
    assert other.found(again) == 0, "computed with the weights before"
    other.compute(again)
    wait_for(lambda: other.found(FakeRequest("third", TOKENS)) == 12)
    one.store.clear()
    assert one.found(FakeRequest("late", TOKENS)) == 0, "computed with weights that this engine has not"


def test_what_runs_during_a_reset_stores_nothing_more_until_it_begins_anew(engines: tuple[Engine, Engine]) -> None:
    one, _ = engines
    request = FakeRequest("running", TOKENS)
    one.found(request)
    one.side.reset_cache()
    assert not one.compute(request).saves
    assert one.found(request) == 0  # it was preempted, and is scheduled again
    assert len(one.compute(request).saves[0].keys) == 3


def report(failed: set[int], *finished: str) -> Any:
    """What the workers have told after a step, taken together by vLLM."""
    return SimpleNamespace(kv_connector_worker_meta=None, invalid_block_ids=failed, finished_recving=set(finished))


@pytest.mark.parametrize("failed", [set(), {1}, {50}], ids=["none", "one of its blocks", "another's"])
def test_a_load_that_failed_in_one_rank_is_not_tried_again_though_others_end_later(
    engines: tuple[Engine, Engine], failed: set[int]
) -> None:
    one, _ = engines
    one.compute(asked("first", one, None))
    request = FakeRequest("second", TOKENS)
    wait_for(lambda: one.found(request) == 12)
    one.side.update_state_after_alloc(request, Blocks([0, 1, 2, 3]), 12)
    one.side.update_connector_output(report(failed))
    one.side.update_connector_output(report(set(), "second"))
    assert one.found(request) == (0 if failed == {1} else 12)


def adapter_at(path: Path) -> Any:
    return SimpleNamespace(lora_name="adapter", lora_path=str(path), name="adapter", adapter_id=1)


def test_an_adapter_is_told_by_its_files_and_not_by_its_path(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    one, _ = engines
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"first")
    one.compute(asked("first", one, adapter_at(tmp_path)))
    wait_for(lambda: one.found(FakeRequest("again", TOKENS, lora_request=adapter_at(tmp_path))) == 12)
    assert one.found(FakeRequest("plain", TOKENS)) == 0
    weights.write_bytes(b"other weights")
    assert one.found(FakeRequest("changed", TOKENS, lora_request=adapter_at(tmp_path))) == 0
    weights.write_bytes(b"first")
    assert one.found(FakeRequest("back", TOKENS, lora_request=adapter_at(tmp_path))) == 12


def test_an_adapter_whose_files_are_not_here_is_neither_stored_nor_loaded(
    engines: tuple[Engine, Engine], tmp_path: Path
) -> None:
    one, _ = engines
    assert not one.compute(asked("first", one, adapter_at(tmp_path / "owner" / "name"))).saves
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not one.compute(asked("second", one, adapter_at(tmp_path))).saves, "a folder without weights"


def asked(name: str, engine: Engine, lora: Any) -> FakeRequest:
    """A request that has asked for its blocks, and found none."""
    request = FakeRequest(name, TOKENS, lora_request=lora)
    assert engine.found(request) == 0
    return request
