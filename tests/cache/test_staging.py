"""Staging: what comes to host memory ahead of its use, what it may cost, and what becomes of it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.guard.guard import Guard
from pbkv_cluster.cache.prefetch import missing
from pbkv_cluster.cache.prefetch.planner import QueuedPrompt
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE, Elsewhere
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount, PrefetchSource
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.prefix_tree import lineage
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, count
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.remote_steps import RemoteStepBegan
from tests.cache.late_transfers import LateEngine
from tests.cache.test_cache_model import SPACES
from tests.cache.test_failed_transfers import FailingDriver
from tests.cache.test_fetches import FetchingEngine, Others
from tests.cache.test_leases import TEXT, space, text

BLOCK_S = 0.01
QUEUE, FORECAST, REQUEST = PrefetchSource.QUEUE, PrefetchSource.FORECAST, PrefetchSource.REQUEST


class StagingDriver(FailingDriver):
    """Stages between random events, and checks each time."""

    def __init__(self, seed: int, capacity: Mapping[Tier, int], policy: str) -> None:
        self.late = FetchingEngine(seed)
        super().__init__(seed, capacity, policy, True, self.late, False, Others(), "none", stage=True)

    def step(self) -> None:
        super().step()
        if self.random.random() < 0.1:
            self.retire()
            self.late.catch_up()
            self.cache.poll()
        before = {key: set(each.tiers) for key, each in self.residency.items()}
        active = {node.key(block) for node in self.cache.tree.walk() if not node.retired for block in range(node.blocks)}
        waited = self.late.waited
        self.cache.prefetcher.wake()
        prompts = [self.queued() for _ in range(self.random.choice((0, 1, 1, 3)))]
        self.cache.prefetcher.run(self.random.choice((0.0, 1.0)), prompts)
        assert self.late.waited == waited, "it has waited"
        for key, tiers in before.items():
            now = set(self.residency[key].tiers) if key in self.residency else set()
            assert (Tier.GPU in tiers) == (Tier.GPU in now), "a block left or entered the GPU for it"
            assert key not in active or not tiers & {Tier.HOST} - now, "a block of an active workflow left host memory for it"
        self.cache.check_integrity()
        self.seen.update(node.key(block) for node in self.cache.tree.walk() if node.staged for block in range(node.blocks))
        self.check_count()

    def queued(self) -> QueuedPrompt:
        """A prompt; of two, about one begins with blocks that the disk alone has, where there are any."""
        slow = [node for node in self.cache.tree.walk() if not any(node.held[:2])]
        if not slow or self.random.random() < 0.5:
            return QueuedPrompt(self.random.choice(SPACES), self.prompt())
        path = list(lineage(self.random.choice(slow)))[::-1]
        space = next(each for each in SPACES if self.cache.tree.root(each) is path[0].parent)
        return QueuedPrompt(space, b"".join(node.tokens for node in path))

    def check_count(self) -> None:
        """What is pending lies where a step would find it sooner, as the cache itself has announced."""
        staged = [
            node.key(each) for node in self.cache.tree.walk() if node.staged is not None for each in node.staged.numbers()
        ]
        near = [key for key in staged if {Tier.GPU, Tier.HOST} & set(self.residency[key].tiers)]
        assert self.total.pending == len(near), "a block's end was not counted"

    @property
    def total(self) -> PrefetchCount:
        return self.cache.tiers.prefetched.staging.total


CAPACITIES = [{Tier.GPU: 24, Tier.HOST: 30}, {Tier.GPU: 24, Tier.HOST: 20, Tier.DISK: 80}]


@pytest.mark.parametrize("policy", ["lru", "pbkv-paper", "pbkv"])
@pytest.mark.parametrize("capacity", CAPACITIES, ids=["two tiers", "with a disk"])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_any_history_keeps_the_cache_right(policy: str, capacity: Mapping[Tier, int], seed: int) -> None:
    driver = StagingDriver(seed, capacity, policy)
    for _ in range(120):
        driver.step()
    driver.recover()
    driver.end()
    assert driver.total.pending == 0


def test_random_histories_have_staged_blocks_of_every_end() -> None:
    total, decisions = PrefetchCount(), Counter[str]()
    for seed in range(12):
        driver = StagingDriver(seed, CAPACITIES[1], "pbkv-paper")
        for _ in range(200):
            driver.step()
        total += driver.total
        decisions += driver.cache.tiers.decisions
    assert min(total.used, total.wasted, total.cancelled) > 0
    assert min(decisions["stage_from_disk"], decisions["stage_from_remote"]) > 0


class Bus(LateEngine):
    """Copies nothing, and says that each block takes a while. A transfer is done when the bus catches up."""

    labelled = True
    lost = False  # what comes from elsewhere does not arrive
    queue_s = 0.0  # until what is on its way from elsewhere has arrived
    disk_s = 0.0  # likewise of the disk

    def _copy(self, transfer: Transfer) -> None:
        transfer.failed = transfer.target_slots if self.lost and transfer.patience_s is not None else transfer.failed

    def completed(self) -> list[Transfer]:
        done, self._completed = self._completed, []
        return done

    def seconds(self, source: Tier, target: Tier, blocks: int) -> float:
        return BLOCK_S * blocks + {Tier.REMOTE: self.queue_s, Tier.DISK: self.disk_s}.get(source, 0.0)


class Peer(Others):
    """Another node has everything."""

    asked = 0  # times

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        self.asked += 1
        return [Tier.REMOTE for _ in keys]

    def is_near(self, key: bytes) -> bool:
        return False


class Rig:
    """A cache of 12 GPU blocks. Each workflow has a text of 4 blocks, of one agent, `a-NAME`."""

    def __init__(
        self,
        host: int = 8,
        disk: int = 0,
        elsewhere: Elsewhere = NOWHERE,
        compute_s: float = 9.0,
        guard: bool = False,
        prefetch: Literal["none", "queue"] = "none",
    ) -> None:
        self.clock, self.bus = ManualClock(), Bus(0)
        config = CacheConfig(policy="pbkv-paper", guard=guard, stage=True, prefetch=prefetch)
        capacity = {Tier.GPU: 12, Tier.HOST: host} | ({Tier.DISK: disk} if disk else {})
        self.cache = make_cache(
            capacity, config, self.bus, self.clock, compute_seconds=lambda tokens: compute_s, elsewhere=elsewhere
        )
        self.bus.watch(self.cache.tiers.pools)
        self.steps = self.epoch = 0

    def run(self, name: str, blocks: int = TEXT, workflow: str = "") -> Mapping[Tier, int]:
        """Runs a step, of the workflow that is called like its text if no other is named. Returns the tokens that tiers had."""
        workflow = workflow or name
        self.clock.advance(1.0)
        self.steps += 1
        tokens = text(name, blocks)
        handle = self.cache.open(StepIdentity(space(), workflow, f"a-{workflow}", self.steps, count(tokens)), tokens)
        assert handle is not None
        assert self.cache.grow(handle, count(tokens))
        self.cache.commit(handle, tokens)
        self.cache.close(handle)
        self.settle()
        return handle.delivered

    def settle(self) -> None:
        self.bus.catch_up()
        self.cache.poll()
        self.cache.check_integrity()

    def ahead(self, *queued: str, seconds: float = 1.0, blocks: int = TEXT) -> int:
        """Returns the blocks that are staged meanwhile."""
        before = self.staged
        self.clock.advance(10.0)
        self.cache.prefetcher.run(seconds, [QueuedPrompt(space(), text(name, blocks)) for name in queued])
        return self.staged - before

    def forecast(self, name: str, probability: float) -> None:
        self.epoch += 1
        steps = (StepForecast({f"a-{name}": probability}, 1.0),)
        self.cache.apply(Forecast(name, self.epoch, 0.0, steps))

    @property
    def staged(self) -> int:
        return sum(self.count(each).loaded for each in PrefetchSource)

    def count(self, reason: PrefetchSource) -> PrefetchCount:
        return self.cache.tiers.prefetched.staging.count(reason)

    def tiers(self, name: str) -> Mapping[Tier, int]:
        """The blocks of a text, by the fastest tier that has each."""
        return {tier: tokens // BLOCK_TOKENS for tier, tokens in self.cache.captured(space(), text(name)).items()}


def test_a_queued_step_finds_in_host_memory_what_another_node_had() -> None:
    rig = Rig(elsewhere=Peer())
    assert rig.ahead("a") == TEXT
    rig.settle()
    assert rig.run("a") == {Tier.HOST: TEXT * BLOCK_TOKENS}
    assert rig.count(QUEUE) == PrefetchCount(loaded=TEXT, used=TEXT)
    assert rig.cache.tiers.decisions["stage_from_remote"] == TEXT


def test_a_step_that_comes_early_waits_for_the_same_transfer() -> None:
    rig = Rig(elsewhere=Peer())
    assert rig.ahead("a") == TEXT
    assert rig.run("a") == {Tier.HOST: TEXT * BLOCK_TOKENS}
    assert rig.cache.tiers.decisions["fetch"] == 0


def test_a_step_does_not_wait_for_what_it_computes_sooner() -> None:
    rig = Rig(elsewhere=Peer(), compute_s=(TEXT + 1) * BLOCK_S)
    assert rig.ahead("a") == TEXT
    rig.bus.queue_s = 2 * BLOCK_S
    assert rig.run("a") == {}
    assert rig.cache.tiers.decisions["load_skipped_slower"] == TEXT


def test_it_loads_what_is_there_already_and_computes_the_rest() -> None:
    rig = Rig(elsewhere=Peer(), compute_s=(TEXT + 1) * BLOCK_S)
    assert rig.ahead("a", seconds=2.5 * BLOCK_S) == 2
    rig.settle()
    assert rig.ahead("a") == TEXT - 2
    rig.bus.queue_s = 2 * BLOCK_S
    assert rig.run("a") == {Tier.HOST: 2 * BLOCK_TOKENS}
    assert rig.tiers("a") == {Tier.GPU: TEXT}


def test_what_lies_beyond_host_memory_and_is_slower_to_load_costs_nothing_that_lies_there() -> None:
    rig = Rig(disk=40, compute_s=TEXT * BLOCK_S)
    for name in "abcdefg":
        rig.run(name)
    some = next(name for name in "abcdefg" if set(rig.tiers(name)) == {Tier.DISK})
    before = rig.cache.tiers.decisions["load"]
    assert rig.ahead(some, seconds=2.5 * BLOCK_S) == 0, "the host is full of active workflows' blocks"
    for name in "abcdefg":
        rig.cache.retire(name)
    for _ in range(2):
        rig.ahead(some, seconds=2.5 * BLOCK_S)
        rig.settle()
    assert rig.tiers(some) == {Tier.HOST: 2, Tier.DISK: TEXT - 2}
    rig.bus.disk_s = TEXT * BLOCK_S
    assert rig.run(some) == {Tier.HOST: 2 * BLOCK_TOKENS}
    assert rig.cache.tiers.decisions["load"] == before + 2


def test_what_is_still_being_staged_is_not_prefetched_to_the_gpu() -> None:
    rig = Rig(elsewhere=Peer(), prefetch="queue")
    assert rig.ahead("a") == TEXT
    rig.ahead("a")
    assert rig.cache.tiers.decisions["prefetch_queue"] == 0
    rig.settle()
    rig.ahead("a")
    assert rig.cache.tiers.decisions["prefetch_queue"] == TEXT


def test_a_likely_workflow_has_its_blocks_back_from_the_disk() -> None:
    rig = Rig(disk=40)
    for name in "abcdefg":
        rig.run(name)
        rig.forecast(name, 0.05)
    assert rig.tiers("a") == {Tier.DISK: TEXT}
    rig.forecast("a", 0.9)
    assert rig.ahead() == 0, "the host is full of active workflows' blocks"
    for name in "bcd":
        rig.cache.retire(name)
    demoted = rig.cache.tiers.decisions["host_demote"]
    assert rig.ahead() == 0, "it waits for nothing: first their blocks go to the disk"
    assert rig.cache.tiers.decisions["host_demote"] == demoted + TEXT, "no more than the room that it needs"
    rig.settle()
    assert rig.ahead() == TEXT
    rig.settle()
    assert rig.tiers("a") == {Tier.HOST: TEXT}
    assert rig.run("a") == {Tier.HOST: TEXT * BLOCK_TOKENS}
    assert rig.count(FORECAST).used == TEXT


def test_an_unlikely_workflow_has_not() -> None:
    rig = Rig(disk=40)
    for name in "abcdefg":
        rig.run(name)
        rig.forecast(name, 0.05)
    rig.cache.retire("b")
    assert rig.ahead() == 0


def test_the_context_of_a_likely_workflow_comes_from_the_node_that_ran_its_step() -> None:
    rig = Rig(elsewhere=Peer())
    tokens = text("a")
    began = RemoteStepBegan(0, 0, "a-a", None, "", -1, 0, tokens[: TEXT * BLOCK_BYTES], 0.0, count(tokens))
    assert rig.cache.hear("a", [began], space())
    assert rig.ahead() == 0, "nothing is known of its next step"
    rig.forecast("a", 0.9)
    assert rig.ahead() == TEXT
    rig.settle()
    assert rig.tiers("a") == {Tier.HOST: TEXT}
    assert [node.retired for node in rig.cache.tree.walk()] == [False], "it counts as the workflow's"


def test_nothing_is_staged_beside_another_transfer_from_there_or_beyond_the_time() -> None:
    rig = Rig(elsewhere=Peer())
    assert rig.ahead("a", seconds=2.5 * BLOCK_S) == 2
    assert rig.ahead("a") == 0
    rig.settle()
    assert rig.ahead("a") == TEXT - 2


def test_what_is_computed_sooner_is_not_staged() -> None:
    assert Rig(elsewhere=Peer(), compute_s=BLOCK_S / 2).ahead("a") == 0


def test_what_does_not_arrive_is_cancelled_and_computed() -> None:
    rig = Rig(elsewhere=Peer())
    rig.bus.lost = True
    assert rig.ahead("a") == TEXT
    rig.settle()
    assert rig.count(QUEUE) == PrefetchCount(loaded=TEXT, cancelled=TEXT)
    assert rig.tiers("a") == {}


def test_it_stops_while_what_it_brings_is_not_used() -> None:
    rig = Rig(host=64, elsewhere=Peer())
    staged = 0
    for number in range(40):
        staged = rig.ahead(f"never-{number}", seconds=9.0, blocks=32)
        rig.settle()
        if not staged:
            break
    assert not staged
    assert rig.count(QUEUE).used == 0
    assert 256 <= rig.count(QUEUE).loaded <= 512 + 32


def test_a_long_text_comes_from_the_disk_one_budget_after_the_other() -> None:
    rig = Rig(host=40, disk=400)
    rig.run("z", 10)
    rig.cache.retire("z")
    for name in "abcdefghijklmnop":
        rig.run(name)
        rig.cache.retire(name)
    staged = list[int]()
    while rig.staged < 10 and len(staged) < 20:
        staged.append(rig.ahead("z", seconds=3.5 * BLOCK_S, blocks=10))
        rig.settle()
    assert [blocks for blocks in staged if blocks] == [3, 3, 3, 1]
    rig.run("z", 10)
    assert rig.count(QUEUE) == PrefetchCount(loaded=10, used=10)


def test_other_nodes_are_not_asked_for_what_follows_a_whole_prompt() -> None:
    rig = Rig(elsewhere=(peer := Peer()))
    rig.run("a")
    peer.asked = 0
    rig.ahead("a")
    assert peer.asked == 0
    rig.ahead("b")
    assert peer.asked == 1


def test_what_is_near_already_hides_nothing_that_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "FOUND_MAX", 1)
    rig = Rig(disk=40)
    for name in "pq":
        rig.run(name, workflow="w")
        rig.forecast("w", 0.05)
    for name in "abcde":
        rig.run(name)
        rig.forecast(name, 0.05)
    for name in "abcde":
        rig.cache.retire(name)
    assert rig.tiers("p") == rig.tiers("q") == {Tier.DISK: TEXT}
    rig.forecast("w", 0.9)
    for _ in range(6):
        rig.ahead()
        rig.settle()
    assert rig.tiers("p") == rig.tiers("q") == {Tier.HOST: TEXT}


def test_queued_steps_do_not_take_the_room_of_each_other() -> None:
    rig = Rig(disk=400)
    for name in "abcdefgh":
        rig.run(name)
    for name in "abcdefgh":
        rig.cache.retire(name)
    for _ in range(8):
        rig.ahead("e", "d", "a", "b")
        rig.settle()
    assert rig.tiers("e") == rig.tiers("d") == {Tier.HOST: TEXT}, "those that are admitted first"
    assert rig.count(QUEUE).wasted == 0


def test_what_a_later_step_finds_in_host_memory_stays_there_for_it() -> None:
    rig = Rig(disk=400)
    for name in "abcdefgh":
        rig.run(name)
    for name in "abcdefgh":
        rig.cache.retire(name)
    before = rig.tiers("d")[Tier.HOST], rig.tiers("e")[Tier.HOST]
    for _ in range(4):
        rig.ahead("a", "d", "e")
        rig.settle()
    assert min(before) > 0
    assert (rig.tiers("d")[Tier.HOST], rig.tiers("e")[Tier.HOST]) >= before


def test_what_comes_from_another_node_does_not_leave_for_a_later_step() -> None:
    rig = Rig(host=4, disk=400, elsewhere=Peer())
    for name in "abcdefgh":
        rig.run(name)
    for name in "abcdefgh":
        rig.cache.retire(name)
    assert rig.tiers("a") == {Tier.DISK: TEXT}
    for _ in range(4):
        rig.ahead("x", "a")
        rig.settle()
    assert rig.tiers("x") == {Tier.HOST: TEXT}
    assert rig.count(QUEUE) == PrefetchCount(loaded=TEXT)


def test_what_leaves_the_gpu_after_its_staged_copy_has_gone_is_wasted_and_staged_again() -> None:
    rig = Rig(disk=400)
    for name in "abcdefg":
        rig.run(name)
        rig.forecast(name, 0.05)
    for name in "abcdefg":
        rig.cache.retire(name)
    for _ in range(2):
        rig.ahead("a")
        rig.settle()
    assert rig.count(QUEUE) == PrefetchCount(loaded=TEXT)
    assert rig.cache.requests.prefetch(space(), text("a")).loaded == TEXT * BLOCK_TOKENS
    rig.settle()
    for name in "hijklmnopqrstu":
        rig.run(name)
        rig.cache.retire(name)
    assert rig.tiers("a") == {Tier.DISK: TEXT}
    assert rig.count(QUEUE) == PrefetchCount(loaded=TEXT, wasted=TEXT)
    for _ in range(2):
        rig.ahead("a")
        rig.settle()
    assert rig.tiers("a") == {Tier.HOST: TEXT}


def test_a_request_stages_what_the_gpu_has_no_room_for() -> None:
    rig = Rig(elsewhere=Peer())
    rig.cache.tiers.decisions.clear()
    for name in ("x", "y", "z"):
        rig.run(name)
    done = rig.cache.requests.prefetch(space(), text("a"))
    rig.settle()
    assert (done.loaded, done.staged) == (BLOCK_TOKENS, (TEXT - 1) * BLOCK_TOKENS), "one block of the GPU is free"
    assert done.tiers == {Tier.REMOTE: TEXT * BLOCK_TOKENS}
    assert rig.tiers("a") == {Tier.GPU: 1, Tier.HOST: TEXT - 1}
    rig.run("a")
    assert rig.count(REQUEST) == PrefetchCount(loaded=TEXT - 1, used=TEXT - 1)


def test_a_request_takes_no_more_room_from_others_than_it_needs() -> None:
    rig = Rig(host=40, disk=400)
    names = "abcdefghijklmnop"
    for name in names:
        rig.run(name)
        rig.cache.retire(name)
    wanted = next(name for name in names if rig.tiers(name) == {Tier.DISK: TEXT})
    for name in "xyz":
        rig.run(name)  # these are active, so that the GPU has no room but for one block
    before = rig.cache.tiers.decisions.copy()
    assert rig.cache.requests.prefetch(space(), text(wanted)).loaded == BLOCK_TOKENS
    left = rig.cache.tiers.decisions - before
    assert (left["host_demote"], left["host_drop_active"], left["host_drop_retired"]) == (TEXT - 1, 0, 0)
    rig.settle()
    assert rig.cache.requests.prefetch(space(), text(wanted)).staged == (TEXT - 1) * BLOCK_TOKENS


def test_to_the_guard_lru_would_have_had_it_from_the_other_node() -> None:
    rig = Rig(elsewhere=Peer(), guard=True)
    assert isinstance(rig.cache.observer, Guard)
    assert rig.ahead("a") == TEXT
    rig.settle()
    rig.run("a")
    stat = rig.cache.guard()
    assert stat is not None
    assert (stat.saved_s, stat.lru_hits) == (0.0, stat.hits)


def test_it_is_off_by_default() -> None:
    assert not CacheConfig().stage
