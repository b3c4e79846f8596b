"""One workflow, one record: each cache that runs steps of a workflow knows all of them, wherever they ran."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.cache.tree.prefix_tree import lineage
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, TOKEN_BYTES, count, pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.access_log import AccessLog, StepLog
from pbkv_cluster.core.workflow.remote_steps import StepHistory
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord
from tests.cache.policy_harness import Cache

SPACE = Namespace("m", "r", "f", "l")
WORKERS = ("one", "two", "three")
MAX_BLOCKS = 12


class Worker:
    """A cache, and the logs that it reports."""

    def __init__(self, clock: ManualClock, gpu_blocks: int, policy: str) -> None:
        self.cache = make_cache(
            {Tier.GPU: gpu_blocks, Tier.HOST: gpu_blocks}, CacheConfig(policy=policy), NullTransferEngine(), clock
        )
        self.cache.workflows.on_ended = self._ended
        self.logs: list[tuple[str, list[StepLog]]] = []

    def _ended(self, ended: AccessLog) -> None:
        self.logs.append((ended.workflow, [copy(step) for step in ended.steps]))

    def open(self, step: StepIdentity, prompt: bytes) -> CacheHandle:
        handle = self.cache.open(step, prompt)
        assert handle is not None
        assert self.cache.grow(handle, count(prompt))
        self.cache.commit(handle, prompt)
        return handle

    def finish(self, handle: CacheHandle, prompt: bytes, output: bytes, at_once: bool) -> None:
        tokens = prompt + output
        for stop in [len(tokens)] if at_once else range(len(prompt) + TOKEN_BYTES, len(tokens) + 1, TOKEN_BYTES):
            assert self.cache.grow(handle, stop // TOKEN_BYTES)
            self.cache.commit(handle, tokens[:stop], stop // TOKEN_BYTES - 1)
        self.cache.close(handle)

    def record(self, workflow: str) -> WorkflowRecord | None:
        owner = self.cache.workflows.find(workflow)
        return None if owner is None else owner.record


@dataclass
class Running:
    number: int
    worker: str
    handles: tuple[CacheHandle, CacheHandle]  # in the cache of its worker, and in the one that runs all steps
    prompt: bytes


@dataclass
class Workflow:
    name: str
    history: StepHistory = field(default_factory=StepHistory)
    steps: int = 0
    served_by: dict[str, None] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)  # prompts, and sequences that have ended


class Cluster:
    """Workers that tell each other of their steps, beside one cache that runs them all."""

    def __init__(self, policy: str, gpu_blocks: int) -> None:
        self.clock = ManualClock()
        self.workers = {name: Worker(self.clock, gpu_blocks, policy) for name in WORKERS}
        self.all = Worker(self.clock, 4000, policy)

    def begin(self, workflow: Workflow, worker: str, agent: str, prompt: bytes) -> None:
        self.clock.advance(1.0)
        self._tell(workflow, worker)
        number, workflow.steps = workflow.steps, workflow.steps + 1
        step = StepIdentity(SPACE, workflow.name, agent, number, count(prompt), parent=number - 1 if number else None)
        handles = self.workers[worker].open(step, prompt), self.all.open(step, prompt)
        workflow.history.began(number, agent, prompt, worker, self.clock.now(), parent=step.parent)
        workflow.running.append(Running(number, worker, handles, prompt))
        workflow.paths.append(prompt)
        workflow.served_by[worker] = None
        self._tell_others(workflow, worker)

    def end(self, workflow: Workflow, step: Running, output: bytes, at_once: bool) -> None:
        self.clock.advance(0.5)
        self.workers[step.worker].finish(step.handles[0], step.prompt, output, at_once)
        self.all.finish(step.handles[1], step.prompt, output, at_once)
        workflow.history.ended(step.number, output, self.clock.now())
        workflow.running.remove(step)
        workflow.paths.append(step.prompt + output[:-TOKEN_BYTES])
        self._tell_others(workflow, step.worker)

    def retire(self, workflow: Workflow) -> None:
        for worker in [*self.workers.values(), self.all]:
            worker.cache.retire(workflow.name)

    def _tell_others(self, workflow: Workflow, worker: str) -> None:
        for other in workflow.served_by:
            if other != worker:
                self._tell(workflow, other)

    def _tell(self, workflow: Workflow, worker: str) -> None:
        untold = workflow.history.untold(worker)
        assert self.workers[worker].cache.hear(workflow.name, [*untold, *untold[:1]], SPACE), "the first one twice does no harm"
        workflow.history.told(worker, untold)


def segments(record: WorkflowRecord) -> dict[bytes, tuple[Any, ...]]:
    """All that is known of each segment, by the tokens down to its end."""
    return {b"".join(each.tokens for each in record.trie.path(segment)): facts(segment) for segment in record.segments}


def facts(segment: Segment) -> tuple[Any, ...]:
    return (
        (segment.start, segment.blocks, segment.output, segment.prompted, segment.replies, segment.branches, segment.born),
        (segment.used_at, segment.mask, segment.first_agent, segment.last_agent, segment.agents, segment.sharing),
    )


def check_owners(worker: Worker) -> None:
    """Each workflow's nodes lie in the segments that it has for them."""
    for owner in worker.cache.workflows.all():
        for node, segment in ((node, node.owners[owner]) for node in owner.nodes):
            path = b"".join(each.tokens for each in reversed(list(lineage(node))))
            known = b"".join(each.tokens for each in owner.record.trie.path(segment))
            assert segment.start * BLOCK_BYTES <= len(path) - len(node.tokens), "a node begins before its segment"
            assert known.startswith(path), "a node lies in another segment"


def blocks(symbols: Sequence[int], workflow: int, tail: int = 0) -> bytes:
    """One block for each symbol, unlike those of any other workflow, and some more tokens."""
    return pack([100 * workflow + symbol for symbol in symbols for _ in range(BLOCK_TOKENS)] + [99] * tail)


symbols = st.lists(st.integers(0, 2), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["pbkv", "lru"]), st.sampled_from([60, 4000]))
def test_every_cache_has_the_record_of_one_that_ran_all_steps(data: st.DataObject, policy: str, gpu_blocks: int) -> None:
    cluster = Cluster(policy, gpu_blocks)
    opened = [Workflow(f"w{number}") for number in range(2)]
    for _ in range(data.draw(st.integers(1, 14))):
        at = data.draw(st.integers(0, 1))
        workflow = opened[at]
        if workflow.running and (len(workflow.running) == 2 or data.draw(st.booleans())):
            step = data.draw(st.sampled_from(workflow.running))
            new = data.draw(st.booleans())
            output = [10 + step.number] * data.draw(st.integers(0, 3)) if new else data.draw(symbols)
            cluster.end(workflow, step, blocks(output, at, tail=1), at_once=not new)
        else:
            known = data.draw(st.sampled_from([b"", *workflow.paths]))
            kept = known[: data.draw(st.integers(0, len(known) // (BLOCK_TOKENS * TOKEN_BYTES))) * BLOCK_TOKENS * TOKEN_BYTES]
            prompt = kept[: (MAX_BLOCKS - 4) * BLOCK_TOKENS * TOKEN_BYTES] + blocks(
                data.draw(symbols), at, data.draw(st.integers(1, 17))
            )
            cluster.begin(workflow, data.draw(st.sampled_from(WORKERS)), data.draw(st.sampled_from("ab")), prompt)
        for worker in cluster.workers.values():
            worker.cache.check_integrity()
            if policy == "pbkv":
                check_owners(worker)
    for workflow in opened:
        while workflow.running:
            cluster.end(workflow, workflow.running[0], blocks([50], 0, tail=1), at_once=True)
    if policy == "pbkv":
        for workflow in opened:
            whole = cluster.all.record(workflow.name)
            for name in workflow.served_by:
                record = cluster.workers[name].record(workflow.name)
                assert record is not None
                assert whole is not None
                assert record.steps == whole.steps
                assert segments(record) == segments(whole)
                assert record.last_step == whole.last_step
    for workflow in opened:
        cluster.retire(workflow)
    logs = [each for worker in cluster.workers.values() for each in worker.logs]
    assert sorted(logs, key=lambda each: each[0]) == sorted(cluster.all.logs, key=lambda each: each[0])
    for worker in cluster.workers.values():
        worker.cache.check_integrity()


def test_a_workflow_whose_end_was_not_told_is_let_go_of_by_lease() -> None:
    played = Cache("pbkv", workflow_lease_s=100.0)
    logs: list[str] = []
    played.cache.workflows.on_ended = lambda ended: logs.append(ended.workflow)
    played.step(0, "silent")
    running = played.begin(1, "running")
    played.cache.retire("retired")
    played.step(2, "late")
    played.cache.retire("late")
    played.step(2, "late")  # its last step was still waiting
    played.clock.advance(98.0)
    played.step(3, "other")
    assert {owner.id for owner in played.cache.workflows.all()} == {"running", "late", "other"}
    played.clock.advance(99.5)
    played.step(3, "other")
    assert {owner.id for owner in played.cache.workflows.all()} == {"running", "other"}
    played.cache.check_integrity()
    played.cache.close(running)
    played.clock.advance(150.0)
    played.step(4, "another")
    assert {owner.id for owner in played.cache.workflows.all()} == {"another"}
    assert logs == ["late"], "nothing is learnt from workflows that may go on elsewhere"
    played.cache.check_integrity()


def test_what_follows_an_unknown_path_or_was_missed_is_not_taken() -> None:
    history, played = StepHistory(), Cache("pbkv")
    history.began(0, "a", blocks([0, 1], 0), "one", 0.0)
    history.ended(0, blocks([2], 0, tail=1), 1.0)
    history.began(1, "b", blocks([0, 1, 2, 1], 0), "one", 2.0)
    first, ended, second = history.untold("two")
    assert not played.cache.hear("w", [second], SPACE, after=ended.index)
    assert played.cache.workflows.find("w") is None
    assert played.cache.hear("w", [second], SPACE)
    owner = played.cache.workflows.find("w")
    assert owner is not None
    assert not owner.record.steps, "it follows a step that is not known here"
    assert played.cache.hear("v", [first, ended, second], SPACE)
    assert played.cache.hear("v", [], SPACE, after=second.index)
    owner = played.cache.workflows.find("v")
    assert owner is not None
    assert [step.prompt_blocks for step in owner.record.steps] == [2, 4]
    assert [(step.came_from, step.follows) for step in owner.record.steps] == [(-1, 0), (0, 3)]


def test_what_is_told_of_a_workflow_after_its_end_does_not_open_it_again() -> None:
    history, played = StepHistory(), Cache("pbkv")
    history.began(0, "a", blocks([0, 1], 0), "one", 0.0)
    history.ended(0, blocks([2], 0, tail=1), 1.0)
    events = history.untold("two")
    assert played.cache.hear("w", events, SPACE)
    played.cache.retire("w")
    assert played.cache.hear("w", events, SPACE), "taken, so that it is not told again"
    assert played.cache.hear("w", events[1:], SPACE, after=events[0].index)
    assert played.cache.workflows.find("w") is None
    later = StepHistory(first_index=100)
    later.began(0, "a", blocks([0, 1], 0), "one", 2.0)
    assert played.cache.hear("w", later.untold("two"), SPACE)
    assert played.cache.workflows.find("w") is not None, "another workflow of that id"


def test_remote_steps_own_blocks_on_their_side_of_the_rotary_switch() -> None:
    space = replace(SPACE, rotary_switch=40)
    worker = Worker(ManualClock(), 100, "pbkv")
    cache = worker.cache
    for length in (32, 48):  # the blocks of both kinds
        step = StepIdentity(space.of_length(length), "other", "a", length, length)
        cache.close(worker.open(step, blocks([0, 1, 2], 0)[: length * TOKEN_BYTES]))

    def owned(workflow: str) -> set[tuple[bool, int]]:
        """Of each node that the workflow owns, whether it is of long sequences, and blocks down to its end."""
        owner = cache.workflows.find(workflow)
        assert owner is not None
        roots = {cache.tree.root(space.of_length(length)): length > 40 for length in (32, 48)}
        found = set()
        for node in owner.nodes:
            path = list(lineage(node))
            top = path[-1] if path[-1] in roots else path[-1].parent
            assert top is not None
            found.add((roots[top], sum(each.blocks for each in path)))
        return found

    history = StepHistory()
    history.began(0, "a", blocks([0, 1, 2], 0), "one", 0.0)
    assert cache.hear("long", history.untold("two"), space)
    assert owned("long") == {(True, 2), (True, 3)}
    history = StepHistory()
    history.began(0, "a", blocks([0, 1], 0), "one", 0.0)
    history.ended(0, blocks([2], 0, tail=1), 1.0)
    began, ended = history.untold("two")
    assert cache.hear("grows", [began], space)
    assert owned("grows") == {(False, 2)}
    assert cache.hear("grows", [ended], space)
    assert owned("grows") == {(False, 2), (True, 2), (True, 3)}
    cache.check_integrity()
