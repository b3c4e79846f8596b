"""The cache against a model: a dictionary from every prefix ever committed to its bytes, over long random histories."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.guard.guard import Guard
from pbkv_cluster.cache.policies.base import make_policy
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.sequence.step_identity import StepIdentity
from pbkv_cluster.cache.tree.node import Level
from pbkv_cluster.core.access_log import StepLog
from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.step_graph import Join, StepGraph, StepNode
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.reuse.model.access_model import AccessModel

SPACES = (Namespace("m", "r", "f", "l"), Namespace("m", "r", "f", "l", salt="tenant"))
AGENTS = ("planner", "coder", "tester")
GRAPH = StepGraph((StepNode("planner"), StepNode("coder", ("planner", "tester"), Join.OR), StepNode("tester", ("coder",))))


class RecordingMover:
    """Carries block contents, as a tensor pool would: what a slot holds is the key of the block written to it."""

    def __init__(self) -> None:
        self.content: dict[tuple[Level, int], bytes] = {}

    def copy(self, source: Level, source_slots: Sequence[int], target: Level, target_slots: Sequence[int]) -> None:
        assert len(set(target_slots)) == len(target_slots) == len(source_slots)
        read = [self.content[source, slot] for slot in source_slots]
        for slot, content in zip(target_slots, read, strict=True):
            self.content[target, slot] = content

    def seconds(self, source: Level, target: Level, blocks: int) -> float:
        return 0.0


@dataclass
class Step:
    """A running or preempted step."""

    number: int
    workflow: int
    agent: str
    tokens: bytes
    prompt_tokens: int
    computed: int = 0  # tokens
    handle: CacheHandle = field(init=False)

    @property
    def space(self) -> Namespace:
        return SPACES[self.workflow % 2]  # a workflow has one tenant


class Driver:
    """Does to the cache what an engine does, and knows what must be true of the answer."""

    def __init__(self, seed: int, gpu: int, host: int, policy: str, guard: bool) -> None:
        self.random = random.Random(seed)
        self.mover = RecordingMover()
        self.clock = ManualClock()
        self.tiers: dict[bytes, frozenset[Tier]] = {}
        config = CacheConfig(policy=policy, guard=guard)
        self.cache = make_cache(gpu, host, config, self.mover, self.clock, self._changed)
        self.drifts = make_policy(policy, config).drifts
        self.learner = AccessModel()
        if self.cache.workflows.learns:
            self.cache.workflows.on_ended = self._learn
        self.running: list[Step] = []
        self.preempted: list[Step] = []
        self.seen: set[bytes] = set()
        self.epoch = self.steps = 0

    def _learn(self, workflow: str, steps: Sequence[StepLog]) -> None:
        self.cache.workflows.learnt(self.learner.export(self.learner.learn(steps)))

    def _changed(self, key: bytes, tiers: frozenset[Tier]) -> None:
        if tiers:
            self.tiers[key] = tiers
        else:
            self.tiers.pop(key, None)

    def prompt(self) -> bytes:
        # Few distinct tokens at few branching points: prefixes meet and part inside blocks and at their edges.
        stem = [self.random.randrange(3)] * self.random.choice((8, 16, 40, 64))
        tail = [self.random.randrange(2) for _ in range(self.random.randrange(1, 90))]
        return pack(stem + tail)

    def start(self) -> None:
        self.steps += 1
        tokens = self.prompt()
        sent = self.random.choice((0, 0, 0, count(tokens) // 2))  # by a worker that was lost
        workflow, agent = self.random.randrange(4), self.random.choice(AGENTS)
        self.open(Step(self.steps, workflow, agent, tokens, count(tokens) - sent))

    def resume(self) -> None:
        if self.preempted:
            step = self.preempted.pop(self.random.randrange(len(self.preempted)))
            if not self.open(step):
                self.preempted.append(step)

    def open(self, step: Step) -> bool:
        space, tokens = step.space, step.tokens
        captured = self.cache.captured(space, tokens)
        room = self.cache.tiers.room()
        name = f"w{step.workflow}"
        graph = GRAPH if step.workflow < 2 else None
        identity = StepIdentity(space, name, step.agent, step.number, step.prompt_tokens, graph)
        handle = self.cache.open(identity, tokens)
        if handle is None:
            assert room < len(tokens) // BLOCK_BYTES + 2
            return False
        assert handle.delivered == captured
        keys = block_keys(space, tokens)[: handle.committed]
        assert [self.mover.content[Level.GPU, slot] for slot in handle.table.slots] == keys, "wrong bytes were delivered"
        assert set(keys) <= self.seen
        assert handle.committed * BLOCK_TOKENS < count(tokens)
        step.handle, step.computed = handle, handle.committed * BLOCK_TOKENS
        self.running.append(step)
        return True

    def compute(self) -> None:
        if not self.running:
            return
        at = self.random.randrange(len(self.running))
        step = self.running[at]
        handle = step.handle
        if step.computed == count(step.tokens):  # decode: one more token
            step.tokens += pack([self.random.randrange(2)])
        target = min(count(step.tokens), step.computed + self.random.choice((1, 16, 33, 64)))
        if not self.cache.grow(handle, target):
            self.cache.close(handle)
            del self.running[at]
            self.preempted.append(step)
            return
        keys = block_keys(step.space, step.tokens[: target * 4])
        for block in range(handle.committed, len(keys)):
            self.mover.content[Level.GPU, handle.table.slots[block]] = keys[block]
            self.seen.add(keys[block])
        self.cache.commit(handle, bytearray(step.tokens), target)
        assert handle.committed == len(keys)
        assert [self.mover.content[Level.GPU, slot] for slot in handle.table.slots[: len(keys)]] == keys
        step.computed = target

    def finish(self) -> None:
        if self.running:
            self.cache.close(self.running.pop(self.random.randrange(len(self.running))).handle)

    def forecast(self) -> None:
        self.epoch += 1
        steps = tuple(StepForecast({agent: self.random.random() / 3 for agent in AGENTS}, 0.9) for _ in range(3))
        self.cache.apply(Forecast(f"w{self.random.randrange(4)}", self.epoch, 0.0, steps))

    def queue(self) -> None:
        prompt = self.random.choice((b"", *(step.tokens for step in (*self.running, *self.preempted))))
        self.cache.queued(f"w{self.random.randrange(4)}", prompt)

    def retire(self) -> None:
        self.cache.retire(f"w{self.random.randrange(4)}")

    def prefetch(self) -> None:
        space, tokens = self.random.choice(SPACES), self.prompt()
        active = {
            node.key(block) for node in self.cache.tree.walk() if not node.retired for block in range(node.held[Level.GPU])
        }
        result = self.cache.prefetch(space, tokens)
        assert result.loaded <= result.resident
        assert all(Tier.GPU in self.tiers[key] for key in active), "a prefetch evicted an active block"

    def clear(self) -> None:
        self.cache.clear()

    def fall_back(self) -> None:
        guard = self.cache.observer
        if isinstance(guard, Guard):
            (guard.recover if guard.stat().lru_active else guard.fall_back)()

    def step(self) -> None:
        self.clock.advance(self.random.random())
        actions = {
            self.start: 20,
            self.resume: 5,
            self.compute: 50,
            self.finish: 12,
            self.forecast: 8,
            self.queue: 4,
            self.retire: 4,
            self.prefetch: 5,
            self.clear: 1,
            self.fall_back: 3,
        }
        self.random.choices(list(actions), list(actions.values()))[0]()
        self.cache.check_integrity()
        self.check_ranks()
        self.check_record()

    def check_record(self) -> None:
        for step in self.running:
            handle = step.handle
            if not handle.records:
                continue
            known = b"".join(segment.tokens for segment in handle.owner.record.path(handle.recorded.position))
            assert step.tokens.startswith(known), "the record has something else"
            assert len(known) >= handle.committed * BLOCK_BYTES, "the record lacks something"

    def check_ranks(self) -> None:
        for queue in self.cache.tiers._queues:
            for rank, _, version, node in queue._heap:
                if queue._valid(version, node):
                    now = queue._rank(node)
                    expected = now._replace(value=rank.value) if self.drifts else now
                    assert rank == expected, "a value changed, and nobody was told"

    def check_announcements(self) -> None:
        assert self.tiers == dict(self.cache.residency()), "listeners were told something else than the truth"


@pytest.mark.parametrize(
    ("policy", "guard"),
    [
        ("lru", False),
        ("retired-lru", False),
        ("lfu", False),
        ("kvflow", False),
        ("continuum", False),
        ("pbkv-paper", False),
        ("pbkv-paper", True),
        ("pbkv", False),
        ("pbkv", True),
    ],
)
@pytest.mark.parametrize(("gpu", "host"), [(24, 0), (24, 10), (40, 80)])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_any_history_keeps_the_cache_right(policy: str, guard: bool, gpu: int, host: int, seed: int) -> None:
    driver = Driver(seed, gpu, host, policy, guard)
    for _ in range(150):
        driver.step()
    driver.check_announcements()
    while driver.running:
        driver.finish()
    driver.cache.check_integrity()
    driver.cache.clear()
    driver.cache.check_integrity()
    assert driver.cache.tree.nodes == 0
    assert driver.cache.used_blocks(Level.GPU) == driver.cache.used_blocks(Level.HOST) == 0
    driver.check_announcements()
