"""Our policy through a real cache: what it keeps once it has seen workflows like these."""

import math
import random
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.guard.guard import Guard
from pbkv_cluster.cache.policies.pbkv import Pbkv
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import count
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.reuse.rank.density import hit_density
from pbkv_cluster.reuse.rank.timing import HORIZONS
from pbkv_cluster.reuse.record.prefix_popularity import PrefixStat
from tests.cache.learning_cache import SPACE, LearningCache, prompt, random_steps
from tests.reuse.workflow_logs import Path, Step, packed


def own(number: int, part: int) -> Path:
    """Three blocks of one workflow's own."""
    return tuple(1000 * (number + 1) + 10 * part + at for at in range(3))


def loop(number: int) -> list[Step]:
    """The planner's prompt is used again by its next step, the coder's never."""
    plan, code = own(number, 0), own(number, 1)
    return [Step("planner", plan), Step("coder", code), Step("planner", plan + own(number, 2))]


def trained(workflows: int = 40, gpu_blocks: int = 2000, **fields: Any) -> LearningCache:
    cache = LearningCache(gpu_blocks, **fields)
    for number in range(workflows):
        cache.run(f"w{number}", loop(number))
    return cache


def test_what_is_used_next_outlives_what_is_more_recent_and_never_used_again() -> None:
    for taught, expected in ((0, ["plan", "code"]), (40, ["code", "plan"])):
        cache = trained(taught)
        cache.run("new", loop(500)[:2], end=False)
        assert cache.order(plan=own(500, 0), code=own(500, 1)) == expected, "recency decides before anything is learnt"


def test_who_waits_for_a_long_tool_call_gives_way_to_who_waits_for_a_short_one() -> None:
    for short, long in (("a", "b"), ("b", "a")):
        cache = trained()
        for name, number in (("a", 500), ("b", 501)):
            cache.run(name, loop(number)[:2], end=False)
        cache.cache.tool_call(short, ToolCall("tests", expected_s=0.5), started=True)
        cache.cache.tool_call(long, ToolCall("tests", expected_s=500.0), started=True)
        paths = {"a": own(500, 0), "b": own(501, 0)}
        assert cache.order(**paths) == [long, short]


def values_of(cache: LearningCache, path: Path) -> list[float]:
    now = cache.clock.now()
    return [cache.policy.value(node, now) for node in cache.cache.tree.walk() if node.tokens == packed(path)]


def test_a_tool_call_that_has_ended_makes_its_workflow_worth_more() -> None:
    cache = trained()
    cache.run("new", loop(500)[:2], end=False)
    call, values = ToolCall("tests", expected_s=500.0), [values_of(cache, own(500, 0))]
    for started in (True, False):
        cache.cache.tool_call("new", call, started)
        values.append(values_of(cache, own(500, 0)))
    unannounced, waiting, over = values
    assert waiting < unannounced < over


def test_a_pause_is_counted_after_the_step_that_is_followed() -> None:
    """Two branches: the step after the plan begins 100 s after it, whatever ran meanwhile."""
    cache = LearningCache()
    timing = cache.policy.outlook.timing
    before = timing.cycle
    tokens = prompt(own(1, 0))
    cache.step("w", Step("planner", own(1, 0)))
    cache.clock.advance(100.0)
    cache.step("w", Step("coder", own(1, 1)))
    after_first = timing.cycle
    handle = cache.cache.open(StepIdentity(SPACE, "w", "tester", 2, count(tokens), parent=0), tokens)
    assert handle is not None
    assert after_first > before
    assert timing.cycle > after_first, "a pause of more than 100 s, not of none"


def test_the_next_step_makes_what_was_waited_for_worthless() -> None:
    cache = trained()
    cache.run("a", loop(500)[:2], end=False)
    cache.run("b", loop(501), end=False)  # its end is all that can come
    assert cache.order(a=own(500, 0), b=own(501, 0)) == ["b", "a"]


def test_blocks_that_many_shared_outlive_those_of_one_when_all_have_ended() -> None:
    cache, shared = LearningCache(), (7, 8, 9)
    for number in range(20):
        cache.run(f"w{number}", [Step("planner", shared), Step("coder", own(number, 0))])
    assert cache.order(shared=shared, last=own(19, 0), first=own(0, 0)) == ["first", "last", "shared"]


def test_who_is_still_to_come_keeps_what_others_have_shared() -> None:
    """Two prompts that equally many have read: an active workflow has come to neither's end, but stands before one of them."""
    for top in (70, 80):
        cache = LearningCache()
        for number in range(30):
            path = (70,) if number % 2 else (80,)
            cache.run(f"w{number}", [Step("planner", path), Step("coder", (*path, 71)), Step("tester", own(number, 0))])
        cache.step("new", Step("planner", (top,)))
        values = {
            node.parent.tokens: cache.policy.value(node, cache.clock.now())
            for node in cache.cache.tree.walk()
            if node.parent is not None and node.tokens == packed((71,))
        }
        assert set(values) == {packed((70,)), packed((80,))}
        assert values[packed((top,))] > 2 * values[packed((150 - top,))]


def test_the_prompt_of_a_queued_step_is_kept() -> None:
    cache = trained()
    cache.run("a", loop(500)[:2], end=False)
    paths = {"plan": own(500, 0), "code": own(500, 1)}
    cache.cache.queued("a", 2, prompt(own(500, 1)))
    assert cache.order(**paths) == ["plan", "code"], "it is certain, whatever else is likely"
    cache = trained()
    cache.run("a", loop(500)[:2], end=False)
    cache.cache.queued("a", 2, prompt(own(500, 1)))
    cache.cache.queued("a", 2, b"")
    assert cache.order(**paths) == ["code", "plan"], "withdrawn"
    cache.cache.queued("nobody", 0, prompt(own(500, 1)))


def test_each_waiting_step_of_a_workflow_is_certain_by_itself() -> None:
    cache = trained()
    cache.run("a", loop(500)[:2], end=False)
    cache.cache.queued("a", 2, prompt(own(500, 0)))
    cache.cache.queued("a", 3, prompt(own(500, 1)))
    certain = values_of(cache, own(500, 0))
    assert values_of(cache, own(500, 1)) == certain
    cache.cache.queued("a", 2, b"")
    assert values_of(cache, own(500, 1)) == certain > values_of(cache, own(500, 0)), "only one was withdrawn"
    handle = cache.begin("a", loop(500)[2])  # step 2
    assert values_of(cache, own(500, 1)) == certain, "step 3 still waits"
    cache.cache.close(handle)


def test_a_preemption_is_neither_an_event_nor_a_pause() -> None:
    cache = trained()
    cache.step("w", Step("planner", own(500, 0)))
    cache.forecast("w", coder=1.0)
    handle = cache.begin("w", Step("coder", own(500, 1)))
    outlook = cache.policy.outlook
    cache.forecast("w", planner=1.0)  # after this step comes the planner
    values_of(cache, own(500, 0))
    before = outlook.trust.share, outlook.timing.cycle
    tokens = prompt(own(500, 1))
    for _ in range(10):
        cache.cache.close(handle)
        cache.clock.advance(0.01)
        again = cache.cache.open(StepIdentity(SPACE, "w", "coder", 1, count(tokens)), tokens, again=True)
        assert again is not None
        handle = again
        values_of(cache, own(500, 0))
    assert (outlook.trust.share, outlook.timing.cycle) == before
    cache.cache.close(handle)


def test_a_shared_prefix_keeps_its_popularity_when_its_first_reader_comes_back() -> None:
    cache, shared = LearningCache(), tuple(range(100, 110))
    first = Step("planner", shared + own(900, 0))
    cache.step("first", first)  # reads it in one piece, which others cut later
    for number in range(60):
        cache.run(f"w{number}", [Step("planner", shared + own(number, 0))])
    cache.step("first", first)
    (entry,) = (node.entry for node in cache.cache.tree.walk() if node.tokens == packed(shared))
    assert entry is not None
    assert entry.workflows == 61


def test_a_branch_does_not_end_the_tool_call_of_another() -> None:
    cache = LearningCache()
    tools = cache.policy.outlook.timing.tools
    cache.step("w", Step("planner", own(1, 0)))
    running = cache.begin("w", Step("coder", own(1, 1)))
    call = ToolCall("tests", expected_s=60.0)
    cache.cache.tool_call("w", call, started=True)
    cache.clock.advance(2.0)
    other = cache.begin("w", Step("tester", own(1, 2)))
    cache.clock.advance(58.0)
    with patch.object(tools, "add") as learnt:
        cache.cache.tool_call("w", ToolCall("tests"), started=False)
    learnt.assert_called_once_with(call, pytest.approx(61.0))
    for handle in (running, other):
        cache.cache.close(handle)


def test_a_step_that_followed_one_elsewhere_counts_no_pause() -> None:
    cache, tokens = LearningCache(), prompt(own(1, 0))
    cache.step("w", Step("planner", own(1, 0)))  # step 0; step 1 runs on another worker
    cache.clock.advance(1000.0)
    with patch.object(cache.policy.outlook.timing, "add_pause") as counted:
        handle = cache.cache.open(StepIdentity(SPACE, "w", "coder", 2, count(tokens), parent=1), tokens)
    assert handle is not None
    counted.assert_not_called()
    cache.cache.close(handle)


def test_forecasts_that_are_wrong_lose_trust_and_right_ones_gain_it() -> None:
    shares = {}
    for right in (True, False):
        cache = trained(10)
        source = random.Random(0)
        for number in range(10, 60):
            first, *_ = loop(number)
            cache.step(f"w{number}", first)
            agent = source.choice(("coder", "tester"))  # the model cannot know
            foretold = agent if right else {"coder": "tester", "tester": "coder"}[agent]
            cache.forecast(f"w{number}", **{foretold: 0.9})
            cache.step(f"w{number}", Step(agent, own(number, 3)))
            cache.cache.retire(f"w{number}")
        shares[right] = cache.policy.outlook.trust.share
    assert shares[True] > 0.95
    assert shares[False] < 0.05


def test_a_trusted_forecast_changes_what_is_kept() -> None:
    """Behind one tester comes the planner, behind another the coder; behind a third either, and only the forecast tells."""
    parts = {"planner": 0, "coder": 1}
    source = random.Random(0)

    def open_end(number: int, tester: str) -> list[Step]:
        return [*loop(number)[:2], Step(tester, own(number, 5))]

    orders = {}
    for foretold in parts:
        cache = LearningCache()
        for number in range(90):
            agent = source.choice(list(parts))
            tester = "either" if number % 3 == 0 else f"tester of the {agent}"
            cache.run(f"w{number}", open_end(number, tester), end=False)
            cache.forecast(f"w{number}", **{agent: 1.0})
            cache.run(f"w{number}", [Step(agent, own(number, parts[agent]) + own(number, 4))])
        cache.run("new", open_end(500, "either"), end=False)
        cache.forecast("new", **{foretold: 1.0})
        orders[foretold] = cache.order(plan=own(500, 0), code=own(500, 1))
    assert orders == {"planner": ["code", "plan"], "coder": ["plan", "code"]}


def test_what_others_have_learnt_serves_as_well() -> None:
    """A model from elsewhere does what one's own workflows would have done."""
    learner = trained().learner
    cache = LearningCache()
    cache.cache.workflows.learnt(learner.export())
    cache.run("new", loop(500)[:2], end=False)
    assert cache.order(plan=own(500, 0), code=own(500, 1)) == ["code", "plan"]


@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), blocks=st.sampled_from((16, 24, 40)))
def test_its_shadow_hits_what_it_would_alone(seed: int, blocks: int) -> None:
    following, fallen = (
        LearningCache(blocks, guard=True, guard_confidence=100) for _ in range(2)
    )  # it decides nothing so soon
    assert isinstance(fallen.cache.observer, Guard)
    fallen.cache.observer.fall_back()
    alone, lru = LearningCache(blocks), LearningCache(blocks, "lru")
    for cache in (following, fallen, alone, lru):
        random_steps(cache, seed, 80)
    for guarded, tolerance in (
        (following, 0.0),  # a guard that does not fall back changes nothing
        (fallen, 0.1),  # cache and shadow share outlooks, so each sees what time has changed at other moments than alone
    ):
        stat = guarded.cache.guard()
        assert stat is not None
        assert stat.lru_hits.tokens == lru.hits
        assert stat.policy_hits.tokens == pytest.approx(alone.hits, rel=tolerance)
        guarded.cache.check_integrity()


def test_the_policy_of_a_shadow_shares_what_is_known_and_gives_the_same_values() -> None:
    cache = LearningCache(guard=True, guard_confidence=100)  # it never decides
    assert isinstance(cache.cache.observer, Guard)
    cache.cache.observer.fall_back()
    for number in range(20):
        cache.run(f"w{number}", loop(number))
    cache.run("a", loop(500)[:2], end=False)
    cache.run("b", loop(501)[:1], end=False)
    guarded = cache.cache
    shadow = cache.cache.observer.shadows[1].cache
    main, shadowed = guarded.policies[0], shadow.policies[0]
    now = cache.clock.now()
    values = [
        {node.tokens: policy.value(node, now) for node in tree.walk()}
        for policy, tree in ((main, guarded.tree), (shadowed, shadow.tree))
    ]
    assert values[0] == values[1]
    assert len(set(values[0].values())) > 3
    assert len(cache.policy.outlook.workflows) == 2, "a workflow counts once"


def test_nodes_are_worth_the_same_together_as_one_by_one() -> None:
    cache, shared = trained(20), (7, 8, 9)
    for number in range(3):
        cache.run(f"done-{number}", [Step("planner", shared), Step("coder", own(number, 0))])
        cache.run(f"open-{number}", [Step("planner", shared), *loop(500 + number)[:2]], end=False)
    policy, now = cache.policy, cache.clock.now()
    nodes = list(cache.cache.tree.walk())
    for chosen in (nodes, [node for node in nodes if node.owners]):
        assert list(policy.values(chosen, now)) == [policy.value(node, now) for node in chosen]
    assert len(set(policy.values(nodes, now))) > 5


def test_a_variant_has_a_shadow_policy_of_its_own_kind() -> None:
    class Variant(Pbkv):
        pass

    config = CacheConfig()
    assert type(Variant(config).for_shadow(config)) is Variant


@given(st.integers(2, 500), st.integers(0, 300), st.floats(0.0, 20.0))
def test_a_block_that_only_new_workflows_use_has_the_value_that_its_density_says(begun: int, ago: int, steps: float) -> None:
    """The short way to the value, where no active workflow can matter, against the long one."""
    policy = Pbkv(CacheConfig())
    for at in range(60):
        policy.outlook.note_start(float(at))
    policy.outlook.workflow_count = begun + ago
    stat = PrefixStat(PrefixStat(None, b"", 0), bytes(64), ago)
    stat.workflows, stat.step_sum = 1, round(steps)
    ((uses, delay),) = policy.first_uses((stat,), 60.0)
    unused = np.exp(-uses * np.maximum(HORIZONS - delay, 0.0))
    short, long = policy.value_to_new_workflows(stat, 60.0), hit_density(unused, 2.0)
    assert 0.0 < uses < 0.02
    assert short == pytest.approx(long, rel=0.1)
    assert not math.isnan(short)


def test_nodes_are_ranked_when_a_victim_is_needed_and_all_together() -> None:
    cache, asked = LearningCache(60), list[int]()
    values = cache.policy.values

    def counted(nodes: Sequence[Node], now: float) -> Sequence[float]:
        asked.append(len(nodes))
        return values(nodes, now)

    with patch.object(cache.policy, "values", counted):
        for number in range(4):
            cache.run(f"w{number}", loop(number)[:2], end=False)
        assert asked == [], "nothing had to leave"
        cache.order(first=own(0, 0))
    assert asked[0] == 8, "two paths of each workflow"
