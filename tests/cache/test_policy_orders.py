"""The orders of `lfu`, `kvflow` and `continuum`: by hand, and against naive references over random histories.

A reference keeps a log of what happened and works every value out from it again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.policies.continuum import Continuum, Pauses, best_ttl
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.core.workflow.step_graph import Join, StepGraph, StepNode
from tests.cache.policy_harness import AGENTS, SPACE, Cache, prompt

HALF_LIFE_S, BENEFIT_S = 8.0, 8.0
LOOP = StepGraph((StepNode("planner"), StepNode("coder", ("planner", "tester"), Join.OR), StepNode("tester", ("coder",))))


@dataclass
class Step:
    """What one step did, and when."""

    workflow: str
    agent: str
    number: int
    began: float
    ended: float


@dataclass
class PlayedSteps:
    """A cache, and a log of all that was done to it."""

    cache: Cache
    graphs: dict[str, StepGraph] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    ends: list[tuple[str, float]] = field(default_factory=list)
    forecasts: dict[str, tuple[float, list[dict[str, float]]]] = field(default_factory=dict)

    def step(self, number: int, workflow: str, agent: str, seconds: float) -> None:
        self.cache.step(number, workflow, agent, self.graphs.get(workflow), seconds)
        ended = self.cache.clock.now()
        self.steps.append(Step(workflow, agent, number, ended - seconds, ended))

    def end(self, workflow: str) -> None:
        if self.of(workflow):
            self.cache.cache.retire(workflow)
            self.ends.append((workflow, self.cache.clock.now()))
            self.forecasts.pop(workflow, None)

    def forecast(self, workflow: str, path: list[dict[str, float]]) -> None:
        if self.of(workflow):
            self.cache.forecast_path(workflow, *path)
            self.forecasts[workflow] = (self.cache.clock.now(), path)

    def of(self, workflow: str) -> list[Step]:
        """The steps of the workflow of that id that has not ended."""
        last_end = max((at for each, at in self.ends if each == workflow), default=-1.0)
        return [step for step in self.steps if step.workflow == workflow and step.began > last_end]

    def holders(self, number: int) -> dict[str, set[str]]:
        """The active workflows that have used a prompt, and the agents with which."""
        found: dict[str, set[str]] = {}
        for workflow in {step.workflow for step in self.steps}:
            agents = {step.agent for step in self.of(workflow) if step.number == number}
            if agents:
                found[workflow] = agents
        return found

    def last_access(self, number: int) -> float:
        return max(step.began for step in self.steps if step.number == number)

    def order(self, value: Callable[["PlayedSteps", int], float], retired_first: bool) -> list[int]:
        numbers = sorted({step.number for step in self.steps})
        return sorted(
            numbers,
            key=lambda n: (retired_first and bool(self.holders(n)), value(self, n), self.last_access(n)),
        )


WORKFLOWS = ("a", "b", "c", "d")
workflows, agents = st.sampled_from(WORKFLOWS), st.sampled_from(AGENTS)
durations = st.sampled_from([0.0, 0.0, 0.0, 1.0, 3.0])
paths = st.lists(st.dictionaries(agents, st.sampled_from([0.1, 0.3, 0.6]), max_size=3), min_size=1, max_size=3)
actions = st.one_of(
    st.tuples(st.just("step"), st.integers(1, 7), workflows, agents, durations),
    st.tuples(st.just("step"), st.integers(1, 7), workflows, agents, durations),
    st.tuples(st.just("step"), st.integers(1, 7), workflows, agents, durations),
    st.tuples(st.just("forecast"), workflows, paths),
    st.tuples(st.just("end"), workflows),
    st.tuples(st.just("wait"), st.integers(1, 9)),
)


def play(history: PlayedSteps, done: list[tuple]) -> None:  # type: ignore[type-arg]  # of several shapes
    for action in done:
        match action:
            case ("step", number, workflow, agent, seconds):
                history.step(number, workflow, agent, seconds)
            case ("forecast", workflow, path):
                history.forecast(workflow, path)
            case ("end", workflow):
                history.end(workflow)
            case ("wait", seconds):
                history.cache.clock.advance(seconds)


def uses(history: PlayedSteps, number: int) -> float:
    now = history.cache.clock.now()
    return sum(2 ** ((step.began - now) / HALF_LIFE_S) for step in history.steps if step.number == number)


def nearness(history: PlayedSteps, number: int) -> float:
    holders = history.holders(number)
    best = math.inf
    for workflow, held in holders.items():
        steps = history.of(workflow)
        distances: dict[str, int] = {}
        if workflow in history.graphs:
            # In a loop of OR joins a workflow stands where it ran last, except that nothing leads from coder back to planner.
            current = {steps[0].agent} if steps else set()
            for step in steps[1:]:
                preds = next(node.predecessors for node in LOOP.nodes if node.agent == step.agent)
                current = (current - set(preds)) | {step.agent}
            for _ in LOOP.nodes:
                for node in LOOP.nodes:
                    before = [0.0 if agent in current else distances.get(agent, math.inf) for agent in node.predecessors]
                    if before and min(before) < math.inf:
                        distances[node.agent] = int(min(before)) + 1
        elif workflow in history.forecasts:
            at, path = history.forecasts[workflow]
            if at >= steps[-1].began - 5.0:
                for k, chances in reversed(list(enumerate(path, start=1))):
                    if chances:
                        distances[min(agent for agent in chances if chances[agent] == max(chances.values()))] = k
        best = min([best, *(distances.get(agent, math.inf) for agent in held)])
    return (1000.0 if len(holders) > 1 else 0.0) - min(best, 100.0)


def expiry(history: PlayedSteps, number: int) -> float:
    """Goes through the log once more, and measures pauses as it goes."""
    moments = sorted(
        [(step.began, 0, step.workflow, step) for step in history.steps]
        + [(step.ended, 1, step.workflow, step) for step in history.steps]
        + [(at, 2, workflow, None) for workflow, at in history.ends],
        key=lambda entry: (entry[0], history.steps.index(entry[3]) if entry[3] else math.inf, entry[1]),
    )
    pauses: list[tuple[str, float]] = []
    last: dict[str, Step] = {}
    ttl: dict[str, float] = {}
    for at, kind, workflow, step in moments:
        if kind == 0 and workflow in last:
            pauses.append((last[workflow].agent, at - last[workflow].ended))
        elif kind == 1 and step is not None:
            last[workflow] = step
            own = [seconds for agent, seconds in pauses if agent == step.agent]
            sample = own if len(own) >= 5 else [seconds for _, seconds in pauses]
            gains = {tau: sum(p <= tau for p in sample) / len(sample) * BENEFIT_S - tau for tau in sample if tau < math.inf}
            best = max(gains.values(), default=0.0)
            ttl[workflow] = min(tau for tau in gains if gains[tau] == best) if best > 0 else 0.0
        elif kind == 2:
            pauses.append((last.pop(workflow).agent, math.inf))
    value = history.last_access(number)
    for workflow in history.holders(number):
        if workflow in last:
            used = last[workflow].ended if last[workflow].number == number else history.last_access(number)
            value = max(value, used + ttl[workflow])
    return value


@pytest.mark.parametrize(
    ("policy", "value", "retired_first"), [("lfu", uses, False), ("kvflow", nearness, True), ("continuum", expiry, True)]
)
@settings(max_examples=150, deadline=None)
@given(done=st.lists(actions, min_size=5, max_size=60))
def test_the_order_is_that_of_the_reference(
    policy: str,
    value: Callable[[PlayedSteps, int], float],
    retired_first: bool,
    done: list[tuple],  # type: ignore[type-arg]
) -> None:
    cache = Cache(policy, lfu_half_life_s=HALF_LIFE_S, continuum_benefit_s=BENEFIT_S)
    history = PlayedSteps(cache, {"a": LOOP, "b": LOOP})
    play(history, done)
    expected = history.order(value, retired_first)
    cache.clock.advance(1000.0)  # time alone changes nothing
    assert cache.order() == expected


# --- lfu ---


def test_lfu_evicts_what_is_least_often_used_then_what_is_least_recently_used() -> None:
    cache = Cache("lfu", lfu_half_life_s=1e6)
    for number in (1, 2, 3, 1, 1, 2):
        cache.step(number, "w")
    cache.step(4, "w")
    assert cache.order() == [3, 4, 2, 1]


def test_old_uses_count_less() -> None:
    cache = Cache("lfu", lfu_half_life_s=10.0)
    for _ in range(4):
        cache.step(1, "w")
    cache.clock.advance(40.0)
    cache.step(2, "w")
    assert cache.order() == [1, 2], "four uses at four half-lives count a quarter"
    cache = Cache("lfu", lfu_half_life_s=100.0)
    for _ in range(4):
        cache.step(1, "w")
    cache.clock.advance(40.0)
    cache.step(2, "w")
    assert cache.order() == [2, 1]


def test_uses_survive_a_split_and_a_long_life() -> None:
    cache = Cache("lfu", lfu_half_life_s=0.001)
    cache.clock.advance(1e9)  # 2 ** (time / half-life) would be far beyond any float
    cache.step(1, "w")
    cache.step(1, "w")
    (node,) = cache.cache.tree.walk()
    uses = node.uses
    assert uses == pytest.approx(cache.clock.now() / 0.001)
    upper = cache.cache.tree.split(node, 1)
    assert upper.uses == node.uses == uses


# --- kvflow ---


def test_kvflow_evicts_the_most_steps_to_execution_first() -> None:
    chain = StepGraph((StepNode("planner"), StepNode("coder", ("planner",)), StepNode("tester", ("coder",))))
    cache = Cache("kvflow")
    cache.step(3, "w", "coder", chain)
    cache.step(4, "w", "tester", chain)
    cache.step(1, "w", "stranger", chain)
    cache.step(2, "w", "planner", chain)
    # coder is one step away, since planner runs; tester two, or one after coder, which nothing followed but tester.
    assert cache.order() == [1, 2, 4, 3]
    cache = Cache("kvflow")
    for number, agent in ((1, "planner"), (2, "coder"), (3, "tester"), (2, "coder")):
        cache.step(number, "w", agent, LOOP)
    assert cache.order() == [1, 2, 3], "tester is next, coder comes after it, planner does not come back"


def test_a_step_moves_what_its_workflow_holds_even_right_after_a_forecast() -> None:
    cache = Cache("kvflow")
    cache.step(1, "w", "coder", LOOP)
    cache.step(2, "w", "tester", LOOP)
    cache.step(3, "w", "stranger", LOOP)
    cache.forecast("w", planner=1.0)
    cache.step(4, "w", "coder", LOOP)
    assert cache.order() == [3, 1, 4, 2], "tester is next, coder comes after it"


def test_varying_suffixes_go_before_fixed_prompts() -> None:
    cache = Cache("kvflow")
    cache.step(1, "a", "tester", LOOP)
    cache.step(1, "b", "tester", LOOP)
    cache.step(2, "a", "tester", LOOP)
    cache.step(3, "a", "coder", LOOP)  # tester is next: prompts 1 and 2 are one step away, 3 is two
    cache.step(4, "b", "planner", LOOP)
    assert cache.order() == [4, 3, 2, 1]
    cache.cache.retire("b")
    assert [cache.holds(n) for n in (1, 2, 3, 4)] == [False] * 4


def test_what_was_generated_varies_however_many_hold_it() -> None:
    cache = Cache("kvflow")
    for workflow in ("a", "b"):
        cache.step(1, workflow, "coder", LOOP)
        step = StepIdentity(SPACE, workflow, "coder", 9, 16, LOOP)  # one block of prompt, two of output
        handle = cache.cache.open(step, prompt(2))
        assert handle is not None
        assert cache.cache.grow(handle, 49)
        cache.cache.commit(handle, prompt(2))
        cache.cache.close(handle)
    policy = cache.cache.policies[0]
    values = [(node.output, policy.value(node, 0.0) >= 1.0) for node in cache.cache.tree.walk()]
    assert sorted(values) == [(False, True), (False, True), (True, False)]


def test_kvflow_follows_the_likeliest_path_where_there_is_no_graph() -> None:
    cache = Cache("kvflow")
    for number, agent in enumerate(AGENTS, start=1):
        cache.step(number, "w", agent)
    cache.forecast_path("w", {"tester": 0.6, "coder": 0.4}, {"planner": 0.5, "coder": 0.4}, {"coder": 0.2, "planner": 0.1})
    assert cache.order() == [2, 1, 3]
    cache = Cache("kvflow")
    for number, agent in enumerate(AGENTS, start=1):
        cache.step(number, "w", agent)
    cache.forecast("w", planner=1.0)
    cache.clock.advance(10.0)
    cache.step(4, "w", "tester")
    assert cache.order() == [1, 2, 3, 4], "a forecast of an earlier step says nothing any more"


def test_two_workflows_make_an_agent_as_near_as_the_nearer_has_it() -> None:
    cache = Cache("kvflow")
    cache.step(1, "a", "tester", LOOP)
    cache.step(1, "b", "tester", LOOP)
    cache.step(2, "a", "coder", LOOP)
    cache.step(2, "b", "coder", LOOP)
    cache.step(3, "a", "planner", LOOP)
    cache.step(3, "b", "planner", LOOP)
    cache.step(4, "a", "coder", LOOP)  # a: tester 1, coder 2; b, at planner and coder: coder 1, tester 1
    assert cache.order()[:2] == [4, 3]


@pytest.mark.parametrize("policy", ["kvflow", "continuum"])
def test_what_ended_workflows_leave_goes_first(policy: str) -> None:
    cache = Cache(policy)
    for number in (1, 2, 3, 4):
        cache.step(number, f"w{number}", "coder", LOOP)
    cache.cache.retire("w4")
    cache.cache.retire("w2")
    assert cache.order() == [2, 4, 1, 3]


# --- continuum ---


def test_continuum_keeps_blocks_through_pauses_that_are_likely_to_be_short() -> None:
    cache = Cache("continuum", continuum_benefit_s=30.0)
    for _ in range(6):  # after coder ten seconds pass, after tester an hour
        cache.step(1, "a", "coder")
        cache.clock.advance(9.0)
        cache.step(1, "a", "tester")
        cache.clock.advance(3599.0)
    cache.step(2, "b", "coder")
    for number in (3, 4, 5):
        cache.step(number, f"w{number}", "tester")
    assert cache.order() == [1, 3, 4, 5, 2], "2 is within its time-to-live for four more seconds"


def test_beyond_its_time_to_live_a_block_is_as_any_other() -> None:
    cache = Cache("continuum", continuum_benefit_s=30.0)
    for _ in range(6):
        cache.step(1, "a", "coder")
        cache.clock.advance(9.0)
    cache.cache.retire("a")
    cache.step(2, "b", "coder")
    cache.clock.advance(12.0)
    cache.step(3, "c", "tester")
    cache.step(4, "d", "coder")
    cache.step(5, "c", "tester")
    policy = cache.cache.policies[0]
    expires = {node.tokens[0]: policy.value(node, 0.0) - cache.clock.now() for node in cache.cache.tree.walk()}
    assert expires[2] < 0.0 < expires[4]
    assert cache.order()[:2] == [1, 2]


def test_before_the_first_pause_continuum_is_lru() -> None:
    cache = Cache("continuum")
    for number in (1, 2, 3):
        cache.step(number, f"w{number}")
    assert cache.order() == [1, 2, 3]


def test_a_preempted_step_is_no_pause_and_steps_at_the_same_time_are_one() -> None:
    cache = Cache("continuum")
    policy = cache.cache.policies[0]
    assert isinstance(policy, Continuum)
    pauses = policy.pauses
    first = cache.begin(1, "w", "coder")
    cache.cache.close(first)
    cache.steps["w"] -= 1
    first = cache.begin(1, "w", "coder")
    second = cache.begin(2, "w", "tester")
    cache.cache.close(first)
    cache.clock.advance(5.0)
    cache.cache.close(second)
    assert list(pauses.after("coder")) == []
    cache.clock.advance(6.0)
    cache.step(1, "w", "coder")
    assert list(pauses.after("tester")) == [7.0]
    cache.cache.retire("w")
    assert list(pauses.after("tester")) == [7.0, math.inf], "it never went on"


@given(
    pauses=st.lists(st.floats(0.0, 100.0) | st.just(math.inf), max_size=30),
    benefit=st.floats(0.1, 100.0),
    other=st.floats(0.0, 200.0),
)
def test_no_other_time_to_live_gains_more(pauses: list[float], benefit: float, other: float) -> None:
    def gain(tau: float) -> float:
        return sum(pause <= tau for pause in pauses) / len(pauses) * benefit - tau if pauses else 0.0

    ttl = best_ttl(pauses, benefit)
    assert 0.0 <= ttl <= benefit
    assert gain(ttl) >= max(0.0, gain(other), *map(gain, pauses)) - 1e-9


def test_pauses_are_bounded_and_forget_the_oldest() -> None:
    pauses = Pauses()
    for number in range(2000):
        pauses.add(f"agent{number}", 1.0)
        pauses.add("busy", float(number))
    assert list(pauses.after("busy")) == [float(number) for number in range(1800, 2000)]
    assert len(pauses.after("stranger")) == 200
    assert pauses.agents == 1024
