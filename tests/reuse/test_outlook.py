"""The outlook on workflows: those that time alone has put out of date are found without a look at all of them."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.policies import pbkv
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.core.tokens import count
from pbkv_cluster.reuse.rank.outlook import Outlook
from pbkv_cluster.reuse.rank.workflow_outlook import ActiveWorkflow, WorkflowOutlook
from tests.cache.learning_cache import SPACE, LearningCache, prompt
from tests.reuse.workflow_logs import AGENTS

OutlookT = TypeVar("OutlookT", bound=Outlook)


class Watched(Outlook):
    """Looks at every workflow whenever a step begins, as the outlook itself need not."""

    def __init__(self) -> None:
        super().__init__()
        # Workflows whose outlook was brought up to date, and that have neither begun nor ended a step since.
        self.updated: dict[str, WorkflowOutlook] = {}
        self.found = 0

    def refresh(self, outlooks: Sequence[WorkflowOutlook], now: float) -> None:
        before = [outlook.update for outlook in outlooks]
        super().refresh(outlooks, now)
        for outlook, update in zip(outlooks, before, strict=True):
            if outlook.update != update:
                self.updated[outlook.id] = outlook

    def step_began(self, workflow: ActiveWorkflow, agent: str, now: float, number: int = -1, parent: int | None = None) -> None:
        self.updated.pop(workflow.id, None)
        super().step_began(workflow, agent, now, number, parent)
        due = [
            name
            for name, outlook in self.updated.items()
            if now - outlook.unused_at > self.timing.unit + 0.4 * (now - outlook.since)  # twice the time in which it gets stale
        ]
        assert sorted(self.due) == sorted(due)
        for name in due:  # it is said once
            del self.updated[name]
        self.found += len(due)

    def step_ended(self, workflow: ActiveWorkflow, now: float) -> None:
        self.updated.pop(workflow.id, None)
        super().step_ended(workflow, now)

    def workflow_ended(self, workflow: ActiveWorkflow) -> None:
        self.updated.pop(workflow.id, None)
        super().workflow_ended(workflow)


# All are multiples of three quarters of a second. A workflow becomes due where such times add up to five times a power of 4,
# which they never do: so nothing turns on rounding.
WAITS = st.sampled_from((0.0, 0.75, 1.5, 3.0, 9.0, 30.0, 120.0, 600.0))
WORKFLOWS = st.integers(0, 3)
PATHS = st.lists(st.integers(0, 2), min_size=1, max_size=3)
MOVES = st.one_of(
    st.tuples(st.just("begin"), WORKFLOWS, st.sampled_from(AGENTS), PATHS),
    st.tuples(st.just("close"), st.integers(0, 9)),
    st.tuples(st.just("run"), WORKFLOWS, st.sampled_from(AGENTS), PATHS, WAITS),
    st.tuples(st.just("queue"), WORKFLOWS, st.booleans()),
    st.tuples(st.just("forecast"), WORKFLOWS, st.sampled_from(AGENTS), st.floats(0.0, 1.0)),
    st.tuples(st.just("look"), WORKFLOWS),
    st.tuples(st.just("end"), WORKFLOWS),
    st.tuples(st.just("wait"), WAITS),  # for a tool, too: nothing is heard of a workflow meanwhile
)


class Played(Generic[OutlookT]):
    """A cache whose outlook is of the given kind, and the steps that run in it."""

    def __init__(self, guard: bool, kind: type[OutlookT]) -> None:
        self.learning = LearningCache(40, guard=guard)
        self.cache, self.clock = self.learning.cache, self.learning.clock
        outlook = self.learning.policy.outlook
        assert isinstance(outlook, kind)
        self.outlook = outlook
        self.running: list[CacheHandle] = []

    def begin(self, workflow: int, agent: str, path: list[int]) -> None:
        steps, name = self.learning.steps, f"w{workflow}"
        steps[name] = steps.get(name, -1) + 1
        tokens = prompt(tuple(path))
        handle = self.cache.open(StepIdentity(SPACE, name, agent, steps[name], count(tokens)), tokens)
        if handle is None:
            return  # no room
        assert self.cache.grow(handle, count(tokens))
        self.cache.commit(handle, tokens)
        self.running.append(handle)

    def close(self, place: int) -> None:
        if self.running:
            self.cache.close(self.running.pop(place % len(self.running)))

    def run(self, workflow: int, agent: str, path: list[int], seconds: float) -> None:
        before = len(self.running)
        self.begin(workflow, agent, path)
        self.clock.advance(seconds)
        if len(self.running) > before:
            self.close(before)

    def queue(self, workflow: int, comes: bool) -> None:
        self.cache.queued(f"w{workflow}", 0, prompt((0, 1)) if comes else b"")

    def forecast(self, workflow: int, agent: str, chance: float) -> None:
        if f"w{workflow}" in self.learning.steps:
            self.learning.forecast(f"w{workflow}", **{agent: chance})

    def look(self, workflow: int) -> None:
        if (outlook := self.outlook.workflows.get(f"w{workflow}")) is not None:
            self.outlook.refresh([outlook], self.clock.now())

    def end(self, workflow: int) -> None:
        self.cache.retire(f"w{workflow}")

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)


@settings(max_examples=100)
@given(moves=st.lists(MOVES, max_size=60), guard=st.booleans())
def test_due_are_those_that_a_look_at_every_workflow_would_find(moves: list[tuple[Any, ...]], guard: bool) -> None:
    with patch.object(pbkv, "Outlook", Watched):
        played = Played(guard, Watched)
    for move, *arguments in moves:
        getattr(played, move)(*arguments)
    played.cache.check_integrity()


@pytest.mark.parametrize("wait", [0.0, 600.0])
def test_time_alone_makes_workflows_due(wait: float) -> None:
    """What is compared above is not nothing."""
    with patch.object(pbkv, "Outlook", Watched):
        played = Played(False, Watched)
    for workflow in range(5):
        played.run(workflow, "planner", [workflow], 0.0)
        played.look(workflow)
    played.wait(wait)
    played.begin(5, "planner", [5])
    assert played.outlook.found == (5 if wait else 0)
