"""A workflow's record, against a naive one that keeps every step's tokens and goes through all of them for every answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.core.workflow.access_log import INSIDE, NO_ATTACH, OUTPUT_END, PROMPT_END, Run, StepLog
from pbkv_cluster.reuse.record.prefix_popularity import PrefixPopularity, PrefixStat
from pbkv_cluster.reuse.record.replay import replay
from pbkv_cluster.reuse.record.segment import Segment, attach_symbol
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord
from tests.reuse.workflow_logs import AGENTS, Path, packed


@dataclass
class Use:
    """A step came by a block."""

    step: int
    agent: str
    output: bool


@dataclass
class Step:
    """A step, and all that it has read and written so far."""

    agent: str
    path: Path
    prompt_blocks: int
    running: bool = True


@dataclass
class Naive:
    """What a record must know, by the path down to each block."""

    steps: list[Step] = field(default_factory=list)
    uses: dict[Path, list[Use]] = field(default_factory=dict)
    cuts: set[Path] = field(default_factory=set)  # where a segment ends

    def use(self, step: int, start: int, stop: int, output: bool) -> None:
        path = self.steps[step].path
        for depth in range(start + 1, stop + 1):
            self.uses.setdefault(path[:depth], []).append(Use(step, self.steps[step].agent, output))
        for path in self.uses:  # blocks that the same steps had used have parted
            if len(path) > 1 and self.users(path) != self.users(path[:-1]):
                self.cuts.add(path[:-1])

    def users(self, path: Path) -> set[int]:
        return {use.step for use in self.uses[path]}

    def segments(self, path: Path) -> list[Path]:
        return [path[:depth] for depth in range(1, len(path) + 1) if depth == len(path) or path[:depth] in self.cuts]

    def expect(self, segment: Segment, path: Path, end: bool) -> None:
        """What must be true of the segment that ends with a block; `end`: nothing lies behind it in the segment."""
        uses = self.uses[path]
        touched: list[int] = []
        for use in uses:
            if not touched or use.step > touched[-1]:
                touched.append(use.step)
        assert segment.used_at == touched
        assert segment.mask == sum(1 << (touched[-1] - step) for step in touched if touched[-1] - step < 16)
        assert segment.agents == {use.agent: max(u.step for u in uses if u.agent == use.agent) for use in uses}
        assert (segment.first_agent, segment.last_agent) == (uses[0].agent, self.steps[touched[-1]].agent)
        assert segment.output == all(use.output for use in uses)
        if end:
            replied = any(step.path == path and not step.running for step in self.steps)
            prompted = any(step.path[: step.prompt_blocks] == path for step in self.steps)
            assert segment.ends == (OUTPUT_END if replied else PROMPT_END if prompted else INSIDE)
            assert segment.branches == sum(below[:-1] == path for below in self.uses)


class Both:
    """A workflow's record and the naive one, given the same steps."""

    def __init__(self, popularity: PrefixPopularity, prompts: list[Path]) -> None:
        self.history, self.naive = WorkflowRecord(), Naive()
        self.popularity, self.prompts = popularity, prompts  # all workflows'

    def begin(self, agent: str, prompt: Path, sent: Path) -> None:
        naive, position = self.naive, len(self.naive.steps)
        known = max((d for d in range(len(prompt) + 1) if prompt[:d] in naive.uses), default=0)
        cuts = {common(prompt, other) for other in self.prompts}
        naive.cuts |= {prompt[:depth] for depth in cuts | {len(prompt)} if depth >= known}
        self.prompts.append(prompt)
        naive.steps.append(Step(agent, prompt, len(prompt)))
        naive.use(position, 0, len(prompt), False)
        before = naive.steps[position].path
        if sent:
            naive.steps[position].path += sent
            naive.use(position, len(before), len(before + sent), True)
        tokens = packed(prompt + sent) + pack([9] * (position % BLOCK_TOKENS))  # a last block that is not full
        assert self.history.begin(position, agent, tokens, len(prompt), float(position), self.popularity) == position

    def write(self, position: int, blocks: Path) -> None:
        step = self.naive.steps[position]
        before = len(step.path)
        step.path += blocks
        self.naive.use(position, before, len(step.path), True)
        written = self.history.write(position, packed(blocks))
        assert written[-1] is self.history.ends[position]

    def end(self, position: int) -> None:
        self.naive.steps[position].running = False
        self.history.end(position, float(position))

    def again(self, position: int) -> None:
        step = self.naive.steps[position]
        step.running = True
        tokens = packed(step.path)
        assert self.history.begin(position, step.agent, tokens, step.prompt_blocks, 99.0, self.popularity) == position

    @property
    def running(self) -> list[int]:
        return [position for position, step in enumerate(self.naive.steps) if step.running]

    def check(self) -> None:
        history, naive = self.history, self.naive
        assert len(history.steps) == len(naive.steps)
        for position, step in enumerate(naive.steps):
            path, above = history.path(position), None
            expected = naive.segments(step.path)
            assert [segment.stop for segment in path] == [len(each) for each in expected]
            assert b"".join(segment.tokens for segment in path) == packed(step.path)
            for segment, end in zip(path, expected, strict=True):
                assert segment.parent is above
                assert segment.start == (0 if above is None else above.stop)
                naive.expect(segment, end, end=True)
                for depth in range(segment.start + 1, segment.stop):
                    naive.expect(segment, end[:depth], end=False)
                above = segment
            log = history.steps[position]
            assert (log.prompt_blocks, log.output_blocks) == (step.prompt_blocks, len(step.path) - step.prompt_blocks)
            assert (log.ended_at < 0) == step.running
        used = {segment for position in range(len(naive.steps)) for segment in history.path(position)}
        assert used == set(history.segments)
        assert len(used) == len(history.segments)


def common(first: Path, second: Path) -> int:
    return next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


short = st.lists(st.integers(0, 2), max_size=4).map(tuple)
some = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)
number = st.integers(0, 30)
actions = st.one_of(
    st.tuples(st.just("begin"), st.integers(0, 1), st.sampled_from(AGENTS), number, number, short, st.just(()) | short),
    st.tuples(st.just("write"), st.integers(0, 1), number, some),
    st.tuples(st.just("end"), st.integers(0, 1), number),
    st.tuples(st.just("again"), st.integers(0, 1), number),
)
plays = st.lists(actions, max_size=25)


def play(done: Sequence[tuple[Any, ...]], one_at_a_time: bool = False, seen: list[Any] | None = None) -> list[Both]:
    """Two workflows that do these things, and beside `seen` what their records held after each."""
    popularity, prompts = PrefixPopularity(1000), list[Path]()
    workflows = [Both(popularity, prompts), Both(popularity, prompts)]
    for what, which, *rest in done:
        both = workflows[which]
        steps, running = both.naive.steps, both.running
        match what, rest:
            case "begin", (agent, source, cut, tail, sent):
                if one_at_a_time and running:
                    both.end(running[0])
                base = steps[source % len(steps)].path if steps else ()
                both.begin(agent, base[: cut % (len(base) + 1)] + tail, sent)
            case "write", (at, blocks):
                if running:
                    both.write(running[at % len(running)], blocks)
            case "end", (at,):
                if running:
                    both.end(running[at % len(running)])
            case "again", (at,):
                if not running and steps:
                    both.again(len(steps) - 1 if one_at_a_time else at % len(steps))
        if seen is not None:
            seen.append([state(each.history) for each in workflows])
    return workflows


@settings(max_examples=400, deadline=None)
@given(plays)
def test_a_record_is_the_naive_one(done: list[tuple[Any, ...]]) -> None:
    for both in play(done):
        both.check()


@settings(max_examples=100, deadline=None)
@given(plays)
def test_nothing_depends_on_what_comes_later(done: list[tuple[Any, ...]]) -> None:
    seen: list[Any] = []
    play(done, seen=seen)
    for made in range(0, len(done), 5):
        assert [state(each.history) for each in play(done[: made + 1])] == seen[made]


def state(history: WorkflowRecord) -> tuple[Any, ...]:
    """All that a learner could see."""
    paths = [(by_segment(history, position), by_block(history, position)) for position in range(len(history.steps))]
    return paths, [replace(log) for log in history.steps], dict(history.last_step), len(history.segments)


def by_block(history: WorkflowRecord, position: int) -> list[tuple[Any, ...]]:
    """What is known of each block of a step."""
    return [
        (list(segment.used_at), segment.mask, dict(segment.agents), segment.output, segment.sharing, segment.key)
        for segment in history.path(position)
        for _ in range(segment.blocks)
    ]


def by_segment(history: WorkflowRecord, position: int) -> list[tuple[Any, ...]]:
    return [
        (segment.start, segment.blocks, segment.ends, segment.branches, segment.first_agent, segment.last_agent, segment.born)
        for segment in history.path(position)
    ]


@settings(max_examples=400, deadline=None)
@given(plays)
def test_a_log_gives_the_same_record_without_tokens(done: list[tuple[Any, ...]]) -> None:
    for both in play(done, one_at_a_time=True):
        for position in both.running:
            both.end(position)
        history, copy = both.history, WorkflowRecord()
        for position, log in enumerate(history.steps):
            assert replay(copy, log) == position
        assert copy.steps == history.steps
        assert copy.last_step == history.last_step
        # What was repeated piece by piece is cut between the pieces; the log knows their sum.
        whole = all(log.repeats < 0 for log in history.steps)
        for position in range(len(history.steps)):
            assert by_block(copy, position) == by_block(history, position)
            if whole:
                assert by_segment(copy, position) == by_segment(history, position)
        if whole:
            assert len(copy.segments) == len(history.segments)


@settings(max_examples=100, deadline=None)
@given(plays)
def test_steps_at_the_same_time_leave_a_log_that_can_be_replayed(done: list[tuple[Any, ...]]) -> None:
    for both in play(done):
        copy = WorkflowRecord()
        for log in both.history.steps:
            replay(copy, log)
        for position, log in enumerate(copy.steps):
            assert (log.prompt_blocks + log.output_blocks) == sum(segment.blocks for segment in copy.path(position))


wild = st.integers(-3, 12)
runs = st.lists(st.builds(Run, st.integers(-1, 4), st.integers(-1, 3), st.integers(0, 9)), max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    plays,
    st.builds(StepLog, wild, st.sampled_from(AGENTS), wild, wild, st.just(0.0), runs, wild, wild, st.just(1.0), wild, wild),
)
def test_a_wrong_log_is_refused_and_changes_nothing(done: list[tuple[Any, ...]], log: StepLog) -> None:
    history = play(done)[0].history
    before = state(history)
    problem = ""
    try:
        position = replay(history, log)
    except ValueError as error:
        problem = str(error)
    if problem:
        assert any(name in problem for name in ("came_from", "follows", "runs", "output_blocks", "repeats", "repeats_to"))
        assert state(history) == before
    else:
        assert sum(segment.blocks for segment in history.path(position)) == log.prompt_blocks + log.output_blocks


LOG = StepLog(0, "planner", -1, 0, 0.0, [Run(4)], output_blocks=2)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"came_from": 1, "follows": 1}, "came_from is 1, but only 1 steps came before"),
        ({"came_from": 0, "follows": 7}, "follows is 7, which is not on the path of step 0"),
        ({"came_from": 0, "follows": 0}, "follows is 0, which is not on the path of step 0"),
        ({"follows": 2}, "follows is 2, but came_from is -1"),
        ({"runs": [Run(0)]}, "runs: one has no blocks"),
        ({"output_blocks": -1}, "output_blocks is -1"),
        ({"repeats": 0, "repeats_to": 5}, "repeats_to is 5, which is not in the output"),
        ({"came_from": 0, "follows": 4, "runs": [], "repeats": 0, "repeats_to": 7, "output_blocks": 3}, "repeats_to is 7"),
    ],
)
def test_a_wrong_log_is_told_what_is_wrong(changed: dict[str, Any], problem: str) -> None:
    history = WorkflowRecord()
    replay(history, LOG)
    with pytest.raises(ValueError, match=problem):
        replay(history, replace(LOG, **changed))


def test_a_step_that_comes_again_with_something_else_is_another() -> None:
    history, popularity = WorkflowRecord(), PrefixPopularity(100)
    assert history.begin(7, "planner", packed((1, 2)), 2, 0.0, popularity) == 0
    assert history.begin(7, "planner", packed((1, 2)), 2, 0.0, popularity) == 1, "the first still runs"
    history.write(1, packed((3,)))
    history.end(1, 1.0)
    assert history.begin(7, "planner", packed((1, 2, 4)), 2, 2.0, popularity) == 2, "it had written something else"
    history.end(2, 3.0)
    assert history.begin(7, "coder", packed((1, 2, 4)), 2, 4.0, popularity) == 3
    history.end(3, 5.0)
    assert history.begin(7, "coder", packed((1, 2, 4)), 3, 6.0, popularity) == 4, "it is longer a prompt"
    history.end(4, 7.0)
    assert history.begin(7, "coder", packed((1, 2, 4)), 3, 8.0, popularity) == 4
    assert [log.ended_at for log in history.steps] == [-1.0, 1.0, 3.0, 5.0, -1.0]


def test_symbols_tell_where_a_prompt_leaves_what_is_known() -> None:
    history, popularity = WorkflowRecord(), PrefixPopularity(100)

    def step(path: Path, output: Path) -> int:
        position = history.begin(len(history.steps), "planner", packed(path), len(path), 0.0, popularity)
        history.write(position, packed(output))
        history.end(position, 0.0)
        return history.steps[position].symbol

    assert step((1, 2), (3,)) == NO_ATTACH
    assert step((1, 2, 3, 4), (5,)) == OUTPUT_END, "one step ago, behind a reply"
    assert step((1, 6), ()) == INSIDE, "one step ago"
    assert step((1, 2, 3, 4, 7), ()) == 3 + PROMPT_END, "two steps ago, behind a prompt"
    for _ in range(4):
        step((8,), ())
    assert step((1, 2, 3, 4, 5, 9), ()) == 3 * 3 + OUTPUT_END, "more than three steps ago"
    assert attach_symbol(None, 3) == NO_ATTACH


def test_a_run_says_how_many_had_it_and_what_it_is() -> None:
    popularity, histories = PrefixPopularity(100), [WorkflowRecord() for _ in range(5)]
    for number, history in enumerate(histories):
        history.begin(0, "planner", packed((1, 2, 10 + number)), 3, 0.0, popularity)
    shared = [history.steps[0].runs[0] for history in histories]
    assert [run.sharing for run in shared] == [0, 1, 1, 2, 2]
    assert [run.blocks for run in shared] == [3, 2, 2, 2, 2]
    assert shared[3].key == shared[4].key != 0
    assert all(run.key == 0 for run in shared[:3])
    assert [segment.sharing for segment in histories[4].path(0)] == [2, 0]


def test_the_popularity_counts_each_workflow_once_when_it_first_reads_an_entry() -> None:
    popularity, first, second = PrefixPopularity(100), WorkflowRecord(), WorkflowRecord()

    def entries(history: WorkflowRecord, position: int) -> list[PrefixStat | None]:
        return [segment.prefix_stat for segment in history.path(position)]

    first.begin(0, "planner", packed((1, 2)), 2, 0.0, popularity)
    first.begin(1, "coder", packed((1, 2, 3)), 3, 0.0, popularity)
    second.begin(0, "planner", packed((1, 2)), 2, 0.0, popularity)
    second.write(0, packed((3,)))  # generated: not read yet
    stem, end = entries(first, 1)
    assert stem is not None
    assert end is not None
    assert (stem.workflows, end.workflows, popularity.workflow_count) == (2, 1, 2)
    for position in range(1, 4):
        second.begin(position, "tester", packed((4,)), 1, 0.0, popularity)
    second.begin(4, "tester", packed((1, 2, 3)), 3, 0.0, popularity)
    second.begin(5, "coder", packed((1, 2, 3)), 3, 0.0, popularity)
    assert (stem.workflows, end.workflows) == (2, 2)
    assert end.step_sum == 1 + 4
    assert end.offsets[:6] == [0, 1, 0, 0, 1, 0], "steps since its workflow came to the stem"
    assert entries(second, 5) == [stem, end]
