"""Generated workflows: determined by the seed, shaped like agent applications, and with reuse that a small LRU cache loses."""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.traces.step_traces import SegmentKind, TraceStep, TraceWorkflow
from pbkv_cluster.simulator.workload.applications import APPLICATIONS, END, Application
from pbkv_cluster.simulator.workload.generator import MARKUP_TOKENS, Sizes, generate
from pbkv_cluster.simulator.workload.prompts import PromptBuilder

APPLICATION = {application.name: application for application in APPLICATIONS}
WORKFLOWS = list(generate(150, seed=3))
SMALL = Sizes(preamble=48, system=224, task=96, output=14, tool_result=112)


@given(seed=st.integers(), count=st.integers(0, 12), more=st.integers(0, 5))
def test_a_seed_decides_every_workflow(seed: int, count: int, more: int) -> None:
    workflows = list(generate(count, seed))
    assert list(generate(count + more, seed))[:count] == workflows
    assert len({workflow.id for workflow in workflows}) == count


def test_seeds_differ() -> None:
    assert [len(w.steps) for w in generate(30, 1)] != [len(w.steps) for w in generate(30, 2)]


@pytest.mark.parametrize("application", APPLICATIONS, ids=lambda application: application.name)
def test_every_agent_can_be_reached_and_can_reach_the_end(application: Application) -> None:
    ways = {name: {edge.to for edge in agent.edges} for name, agent in application.agents.items()}
    reached, ending = {application.start}, {END}
    for _ in ways:
        reached |= {to for name in reached - {END} for to in ways[name]}
        ending |= {name for name, after in ways.items() if after & ending}
    assert reached == ending == {*ways, END}


def test_steps_follow_the_edges_with_their_tools() -> None:
    for workflow in WORKFLOWS:
        application = APPLICATION[workflow.workload]
        assert workflow.steps[0].agent == application.start
        for step, following in pairwise(workflow.steps):
            taken = [edge for edge in application.agents[step.agent].edges if edge.to == following.agent]
            assert step.tool in {edge.tool.name if edge.tool else "" for edge in taken}
            assert (step.pause_s > 0) == bool(step.tool)


def test_branches_and_loops_occur_and_workflows_end() -> None:
    assert {workflow.workload for workflow in WORKFLOWS} == set(APPLICATION)
    successors: dict[tuple[str, str], set[str]] = {}
    for workflow in WORKFLOWS:
        for step, following in pairwise(workflow.steps):
            successors.setdefault((workflow.workload, step.agent), set()).add(following.agent)
    assert sum(len(after) > 1 for after in successors.values()) >= 8
    for name in APPLICATION:
        mine = [workflow for workflow in WORKFLOWS if workflow.workload == name]
        assert any(max(Counter(step.agent for step in workflow.steps).values()) > 1 for workflow in mine)
        assert any(_ends_by_itself(workflow) for workflow in mine)
        assert len({len(workflow.steps) for workflow in mine}) > 3
    assert max(len(workflow.steps) for workflow in generate(60, max_steps=5)) == 5


def _ends_by_itself(workflow: TraceWorkflow) -> bool:
    last = APPLICATION[workflow.workload].agents[workflow.steps[-1].agent]
    return any(edge.to == END for edge in last.edges)


def test_an_agent_finds_its_last_prompt_and_reply_as_a_prefix() -> None:
    for workflow in WORKFLOWS:
        last: dict[str, tuple[str, ...]] = {}
        for step in workflow.steps:
            ids = tuple(segment.id for segment in step.prompt)
            before = last.get(step.agent, ())
            assert ids[: len(before)] == before
            last[step.agent] = (*ids, step.output_id)


def test_system_prompts_are_shared_and_memories_are_not() -> None:
    owners: dict[str, set[str]] = {}
    for workflow in WORKFLOWS:
        for step in workflow.steps:
            for segment in step.prompt:
                if segment.kind in (SegmentKind.TASK, SegmentKind.HISTORY, SegmentKind.TOOL):
                    owners.setdefault(segment.id, set()).add(workflow.id)
                else:
                    assert workflow.id not in segment.id
    assert all(len(workflows) == 1 for workflows in owners.values())


def test_replies_come_back_with_markup() -> None:
    for workflow in WORKFLOWS:
        replies = {step.output_id: step.output_tokens for step in workflow.steps}
        assert len(replies) == len(workflow.steps)
        for step in workflow.steps:
            for segment in step.prompt:
                if segment.kind is SegmentKind.HISTORY:
                    assert segment.tokens == replies[segment.id] + MARKUP_TOKENS


@given(scale=st.integers(1, 8))
def test_sizes_scale_prompts(scale: int) -> None:
    base = Sizes(preamble=10, system=100, task=50, output=20, tool_result=30)
    larger = Sizes(*(scale * size for size in (10, 100, 50, 20, 30)))
    for small, large in zip(generate(3, 1, base), generate(3, 1, larger), strict=True):
        for step, scaled_step in zip(small.steps, large.steps, strict=True):
            slack = scale * (len(step.prompt) + 1) + MARKUP_TOKENS * len(step.prompt) * scale
            assert abs(scaled_step.prompt_tokens - scale * step.prompt_tokens) <= slack


def test_reuse_is_there_and_a_small_lru_loses_it() -> None:
    workflows = list(generate(60, 0, SMALL, max_steps=24))
    prompts, infinite = _hit_share(workflows, 10**9)
    large, small = _hit_share(workflows, 2000)[1], _hit_share(workflows, 500)[1]
    assert prompts > 150_000
    assert 0.6 < infinite < 0.95
    assert large > 0.95 * infinite
    assert small < 0.8 * infinite


def _hit_share(workflows: list[TraceWorkflow], blocks: int, concurrency: int = 12) -> tuple[int, float]:
    """Number of prompt tokens, and the hit rate of an LRU cache of so many blocks, with workflows taking turns."""
    builder, namespace = PromptBuilder(), Namespace("m", "r", "float32", "unit")
    cache: OrderedDict[bytes, None] = OrderedDict()
    prompts = hits = 0
    for step in _interleaved(workflows, concurrency):
        keys = block_keys(namespace, builder.prompt(step))
        hits += 16 * next((number for number, key in enumerate(keys) if key not in cache), len(keys))
        prompts += step.prompt_tokens
        # The end of a sequence is evicted before its beginning, as in a prefix tree.
        for key in reversed(block_keys(namespace, builder.prompt(step) + builder.output(step))):
            cache[key] = None
            cache.move_to_end(key)
        while len(cache) > blocks:
            cache.popitem(last=False)
    return prompts, hits / prompts


def _interleaved(workflows: list[TraceWorkflow], concurrency: int) -> Iterator[TraceStep]:
    waiting = deque(deque(workflow.steps) for workflow in workflows)
    running = deque(waiting.popleft() for _ in range(concurrency))
    while running:
        steps = running.popleft()
        yield steps.popleft()
        if steps:
            running.append(steps)
        elif waiting:
            running.append(waiting.popleft())


@pytest.mark.parametrize(
    ("arguments", "field"), [({"count": -1}, "count"), ({"max_steps": 0}, "max_steps"), ({"applications": ()}, "applications")]
)
def test_refuses_values_out_of_range(arguments: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        list(generate(**{"count": 1, **arguments}))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"sizes\.task"):
        Sizes(task=0)
