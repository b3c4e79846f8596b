"""The inventory lists what a cache holds, whatever happens to the cache between two looks."""

import random

import pytest

from pbkv_cluster.cache.inventory import CachedBlocks, Grouping, Inventory, Order
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier
from tests.cache.policy_harness import SPACE, Cache, prompt

PROMPT = 3 * BLOCK_TOKENS  # tokens of a prompt that are cached


def listed(cache: Cache, by: Grouping, order: Order = Order.LARGEST, limit: int = 100, **only: str) -> list[CachedBlocks]:
    inventory = Inventory(cache.cache, by, order, limit, cache.clock.now(), **only)
    while inventory.look(2):
        pass
    return inventory.entries()


@pytest.fixture
def cache() -> Cache:
    """Two workflows, one block of text that both use, and what a third has left."""
    cache = Cache("pbkv-paper", gpu_blocks=12, host_blocks=30)
    cache.step(1, "first", "planner")
    cache.step(2, "first", "coder")
    cache.step(1, "second", "planner")
    cache.step(3, "ended", "planner")
    cache.cache.retire("ended")
    return cache


def test_runs_have_the_key_and_the_place_of_their_blocks(cache: Cache) -> None:
    runs = listed(cache, Grouping.RUN)
    held = cache.cache.tiers.residency()
    assert {bytes.fromhex(run.name) for run in runs} <= set(held)
    assert sum(run.tokens for run in runs) == len(held) * BLOCK_TOKENS
    assert {(run.tokens, run.shared_tokens, run.workflows, run.agents) for run in runs} == {
        (PROMPT, PROMPT, ("second", "first"), ("planner",)),
        (PROMPT, 0, ("first",), ("coder",)),
        (PROMPT, 0, (), ()),
    }
    assert all(run.tiers == {Tier.GPU: PROMPT} for run in runs)


def test_sums_by_workflow_and_agent(cache: Cache) -> None:
    by_workflow = {entry.name: entry for entry in listed(cache, Grouping.WORKFLOW)}
    assert {name: (entry.tokens, entry.shared_tokens) for name, entry in by_workflow.items()} == {
        "first": (2 * PROMPT, PROMPT),
        "second": (PROMPT, PROMPT),
        "": (PROMPT, 0),
    }
    assert set(by_workflow["first"].agents) == {"planner", "coder"}
    assert {entry.name: entry.tokens for entry in listed(cache, Grouping.AGENT)} == {
        "planner": PROMPT,
        "coder": PROMPT,
        "": PROMPT,
    }


def test_blocks_that_several_workflows_share_count_once_by_tier(cache: Cache) -> None:
    for by in Grouping:
        inventory = Inventory(cache.cache, by, Order.LARGEST, 1, cache.clock.now())
        assert not inventory.look(1000)
        assert inventory.shared == {Tier.GPU: PROMPT}
    handle = cache.begin(1, "third")  # its blocks are locked, and those are counted elsewhere
    inventory = Inventory(cache.cache, Grouping.WORKFLOW, Order.LARGEST, 9, cache.clock.now())
    inventory.look(1000)
    assert cache.cache.locked_blocks(Tier.GPU) * BLOCK_TOKENS >= PROMPT
    assert inventory.shared == {}
    cache.cache.close(handle)
    alone = Inventory(cache.cache, Grouping.RUN, Order.LARGEST, 1, cache.clock.now(), agent="coder")
    alone.look(1000)
    assert alone.shared == {}


def test_only_what_a_workflow_or_an_agent_has_used(cache: Cache) -> None:
    assert [run.agents for run in listed(cache, Grouping.RUN, agent="coder")] == [("coder",)]
    assert {run.agents for run in listed(cache, Grouping.RUN, workflow="first")} == {("coder",), ("planner",)}
    assert [entry.name for entry in listed(cache, Grouping.WORKFLOW, workflow="second")] == ["second"]
    assert not listed(cache, Grouping.RUN, workflow="first", agent="tester")


def test_the_hottest_is_what_was_used_most_lately(cache: Cache) -> None:
    for _ in range(3):
        cache.step(2, "first", "coder")
    first, *_ = listed(cache, Grouping.RUN, Order.HOTTEST)
    assert first.agents == ("coder",)
    assert first.idle_s == 0
    assert 3 < first.recent_uses <= 4
    assert [run.recent_uses for run in listed(cache, Grouping.RUN, Order.HOTTEST, limit=2)] == sorted(
        (run.recent_uses for run in listed(cache, Grouping.RUN)), reverse=True
    )[:2]


def test_where_no_policy_keeps_records_agents_are_not_known() -> None:
    cache = Cache("lru")
    cache.step(1, "first", "planner")
    assert [(entry.name, entry.tokens, entry.workflows) for entry in listed(cache, Grouping.AGENT)] == [
        ("", PROMPT, ("first",))
    ]


def test_blocks_in_use_and_in_the_host_are_told(cache: Cache) -> None:
    for number in (4, 5):
        cache.step(number, "first")
    handle = cache.begin(6, "first")
    runs = listed(cache, Grouping.RUN)
    assert sum(run.in_use for run in runs) == 1
    assert sum(run.tiers.get(Tier.HOST, 0) for run in runs) == cache.cache.used_blocks(Tier.HOST) * BLOCK_TOKENS > 0
    cache.cache.close(handle)


def test_a_cache_may_change_while_it_is_looked_at() -> None:
    chance = random.Random(3)
    cache = Cache("lru", gpu_blocks=12, host_blocks=9)
    for _ in range(200):
        inventory = Inventory(cache.cache, chance.choice(list(Grouping)), Order.LARGEST, 5, cache.clock.now())
        while inventory.look(1):
            if chance.random() < 0.5:
                cache.step(chance.randrange(20), f"w{chance.randrange(4)}")
            if chance.random() < 0.1:
                cache.cache.retire(f"w{chance.randrange(4)}")
        cache.step(chance.randrange(20), f"w{chance.randrange(4)}")
        entries = inventory.entries()
        assert len(entries) <= 5
        assert all(entry.tokens > 0 for entry in entries)


def test_a_prompt_that_continues_another_starts_after_it() -> None:
    cache = Cache("lru")
    cache.step(1, "first")
    longer = prompt(1)[: 48 * 4] + prompt(2)
    handle = cache.cache.open(StepIdentity(SPACE, "second", "planner", 0, 97), longer)
    assert handle is not None
    assert cache.cache.grow(handle, 97)
    cache.cache.commit(handle, longer)
    cache.cache.close(handle)
    assert {(run.start_tokens, run.tokens) for run in listed(cache, Grouping.RUN)} == {(0, PROMPT), (PROMPT, PROMPT)}
