"""The cache against a model: a dictionary from every prefix ever committed to its bytes, over long random histories.

Each history runs with transfers that are done at once, and with transfers that are done in any order and as late as may be.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.guard.guard import Guard
from pbkv_cluster.cache.policies.base import make_policy
from pbkv_cluster.cache.sequence import fetch
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE, Elsewhere
from pbkv_cluster.cache.tiers.pool import SlotState
from pbkv_cluster.cache.tree.node import GPU
from pbkv_cluster.core.blocks import BlockLabel, Namespace, block_keys
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.core.workflow.step_graph import Join, StepGraph, StepNode
from pbkv_cluster.reuse.model.access_model import AccessModel
from tests.cache.late_transfers import LateEngine, TaggedEngine

SPACES = (Namespace("m", "r", "f", "l"), Namespace("m", "r", "f", "l", salt="tenant"))
COMPUTE_S = 0.6  # as the cache believes, whatever is to be computed
AGENTS = ("planner", "coder", "tester")
GRAPH = StepGraph((StepNode("planner"), StepNode("coder", ("planner", "tester"), Join.OR), StepNode("tester", ("coder",))))


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

    def __init__(
        self,
        seed: int,
        capacity: Mapping[Tier, int],
        policy: str,
        guard: bool,
        engine: TaggedEngine,
        write_through: bool = False,
        elsewhere: Elsewhere = NOWHERE,
        prefetch: Literal["none", "conservative", "queue"] = "queue",
        demote_early: bool = False,
        stage: bool = False,
    ) -> None:
        self.random = random.Random(seed)
        self.engine = engine
        self.clock = ManualClock()
        self.residency: dict[bytes, Residency] = {}
        config = CacheConfig(
            policy=policy, guard=guard, write_through=write_through, prefetch=prefetch, demote_early=demote_early, stage=stage
        )
        self.cache = make_cache(capacity, config, engine, self.clock, self._changed, lambda tokens: COMPUTE_S, elsewhere)
        engine.watch(self.cache.tiers.pools)
        self.drifts = make_policy(policy, config).drifts
        self.learner = AccessModel()
        if self.cache.workflows.learns:
            self.cache.workflows.on_ended = self._learn
        self.running: list[Step] = []
        self.preempted: list[Step] = []
        self.seen: set[bytes] = set()
        self.epoch = self.steps = 0

    def _learn(self, ended: AccessLog) -> None:
        self.cache.workflows.learnt(self.learner.export(self.learner.learn(ended.steps)))

    def _changed(self, label: BlockLabel, residency: Residency) -> None:
        assert label.is_consistent
        if residency.slot >= 0:
            tier = next(tier for tier in self.cache.tiers if tier.index != GPU and tier.kind in residency.tiers)
            assert self.engine.content[tier.kind, residency.slot] == label.key, "others would read what is not there"
        if residency.tiers:
            self.residency[label.key] = residency
        else:
            self.residency.pop(label.key, None)

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
        refused = self.cache.tiers.decisions["load_skipped_slower"]
        handle = self.cache.open(identity, tokens, ahead=0)
        if handle is None:
            assert room < len(tokens) // BLOCK_BYTES + 2
            return False
        if self.cache.tiers.decisions["load_skipped_slower"] == refused:
            assert handle.delivered == captured | handle.fetched
        keys = block_keys(space, tokens)[: handle.committed]
        self.seen.update(keys[len(keys) - sum(handle.fetched.values()) // BLOCK_TOKENS :] if handle.fetched else ())
        self.check_bytes(handle, keys)
        assert set(keys) <= self.seen
        assert handle.committed * BLOCK_TOKENS < count(tokens)
        step.handle, step.computed = handle, handle.committed * BLOCK_TOKENS
        self.running.append(step)
        return True

    def check_bytes(self, handle: CacheHandle, keys: Sequence[bytes]) -> None:
        """What the handle's blocks hold, of which some may be on their way."""
        for slot, key in zip(handle.table.slots[: len(keys)], keys, strict=True):
            state = self.cache.tiers.gpu.pool.state(slot)
            assert state in (SlotState.RESIDENT, SlotState.ARRIVING)
            if state is SlotState.RESIDENT:
                assert self.engine.content[Tier.GPU, slot] == key, "wrong bytes were delivered"
            else:
                assert not handle.ready, "a block that has not arrived would be computed on"

    def compute(self) -> None:
        if not self.running:
            return
        at = self.random.randrange(len(self.running))
        step = self.running[at]
        handle = step.handle
        if not handle.ready:
            self.cache.wait(handle)
        assert handle.ready
        self.check_bytes(handle, block_keys(step.space, step.tokens)[: handle.committed])
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
            self.engine.content[Tier.GPU, handle.table.slots[block]] = keys[block]
            self.seen.add(keys[block])
        self.cache.commit(handle, bytearray(step.tokens), target)
        assert handle.committed == len(keys)
        self.check_bytes(handle, keys)
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
        self.cache.queued(f"w{self.random.randrange(4)}", self.random.randrange(3), prompt)

    def retire(self) -> None:
        self.cache.retire(f"w{self.random.randrange(4)}")

    def prefetch(self) -> None:
        space, tokens = self.random.choice(SPACES), self.prompt()
        active = {node.key(block) for node in self.cache.tree.walk() if not node.retired for block in range(node.held[GPU])}
        result = self.cache.requests.prefetch(space, tokens)
        assert result.loaded <= result.resident <= sum(result.tiers.values())
        if sum(result.tiers.get(tier, 0) for tier in (Tier.SIBLING, Tier.REMOTE)):
            self.seen.update(block_keys(space, tokens)[: sum(result.tiers.values()) // BLOCK_TOKENS])
        assert all(Tier.GPU in self.residency[key].tiers for key in active), "a prefetch evicted an active block"

    def lease(self) -> None:
        workflow = self.random.choice(("", f"w{self.random.randrange(4)}"))
        space, name = self.random.choice(SPACES), str(self.random.randrange(5))
        result = self.cache.requests.lease(space, self.prompt(), name, self.random.random() * 20, workflow)
        assert result.leased <= result.cached

    def release(self) -> None:
        self.cache.requests.release(self.random.choice(SPACES).salt, str(self.random.randrange(5)))

    def check_leases(self) -> None:
        """After every action: no tenant has more than its share, and none has a lease that is over."""
        leases, now = self.cache.leases, self.clock.now()
        leased = leases.blocks
        nodes = list(self.cache.tree.walk())
        for space in SPACES:
            own = sum(node.blocks for node in nodes if any(lease.tenant == space.salt for lease in node.leases))
            assert own <= leases.limit, "a tenant has leased more than its share"
            leased -= own
        assert not leased
        assert all(lease.expires_at > now for node in nodes for lease in node.leases), "a lease is over and counts"

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
            self.lease: 3,
            self.release: 1,
            self.clear: 1,
            self.fall_back: 3,
        }
        self.random.choices(list(actions), list(actions.values()))[0]()
        self.cache.poll()
        self.engine.spoil()
        self.cache.check_integrity()
        self.check_leases()
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
        for queue in self.cache.tiers.order.queues:
            for node, rank in queue.entries():
                now = queue.rank(node)
                expected = now._replace(value=rank.value) if self.drifts else now
                assert rank == expected, "a value changed, and nobody was told"

    def check_announcements(self) -> None:
        assert self.residency == dict(self.cache.tiers.residency()), "listeners were told something else than the truth"

    def end(self) -> None:
        """Everything ends, and the cache is empty again."""
        self.check_announcements()
        while self.running:
            self.finish()
        while len(self.cache.tiers.in_flight):
            self.engine.catch_up()
            self.cache.poll()
        self.check_announcements()
        shared = [residency for residency in self.residency.values() if residency.tiers != {Tier.GPU}]
        assert all(residency.slot >= 0 for residency in shared), "others are not told that a block has arrived"
        self.cache.check_integrity()
        self.cache.clear()
        self.cache.check_integrity()
        assert self.cache.tree.nodes == 0
        assert not any(pool.used_slots for pool in self.cache.tiers.pools)
        self.check_announcements()


POLICIES = [
    ("lru", False),
    ("retired-lru", False),
    ("lfu", False),
    ("kvflow", False),
    ("continuum", False),
    ("pbkv-paper", False),
    ("pbkv-paper", True),
    ("pbkv", False),
    ("pbkv", True),
]
CAPACITIES = [
    {Tier.GPU: 24, Tier.HOST: 0},
    {Tier.GPU: 24, Tier.HOST: 10},
    {Tier.GPU: 40, Tier.HOST: 80},
    {Tier.GPU: 24, Tier.HOST: 10, Tier.DISK: 20},
    {Tier.GPU: 24, Tier.HOST: 20, Tier.DISK: 80},
    {Tier.GPU: 24, Tier.HOST: 0, Tier.DISK: 20},
]


def named(capacity: Mapping[Tier, int]) -> str:
    return "-".join(f"{tier}{blocks}" for tier, blocks in capacity.items())


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """However late a load from the disk is, it is waited for."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fetch, "PATIENCE_MIN_S", math.inf)
        yield


@pytest.mark.parametrize(("policy", "guard"), POLICIES)
@pytest.mark.parametrize("capacity", CAPACITIES[:3], ids=named)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_any_history_keeps_the_cache_right(policy: str, guard: bool, capacity: Mapping[Tier, int], seed: int) -> None:
    driver = Driver(seed, capacity, policy, guard, TaggedEngine())
    for _ in range(150):
        driver.step()
    driver.end()


@pytest.mark.parametrize("policy", ["lru", "pbkv-paper"])
@pytest.mark.parametrize("capacity", CAPACITIES, ids=named)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_how_late_transfers_are_changes_nothing_but_time(policy: str, capacity: Mapping[Tier, int], seed: int) -> None:
    early, late = (Driver(seed, capacity, policy, True, engine) for engine in (TaggedEngine(), LateEngine(seed)))
    for _ in range(150):
        for driver in (early, late):
            driver.step()
        assert late.cache.tiers.decisions == early.cache.tiers.decisions
        held = [{key: each.tiers for key, each in driver.residency.items()} for driver in (late, early)]
    assert held[0] == held[1]
    for driver in (early, late):
        driver.end()


def test_histories_have_transfers_that_are_waited_for() -> None:
    engine = LateEngine(0)
    driver = Driver(0, CAPACITIES[3], "lru", False, engine)
    for _ in range(300):
        driver.step()
    assert engine.waited > 20
