"""Block leases: what they keep, for how long, how much of it, and what they never hold up."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.elsewhere import NOWHERE, Elsewhere, Nowhere
from pbkv_cluster.cache.tiers.leases import LEASES_MAX, LEASES_TOGETHER, BlockLeases
from pbkv_cluster.cache.tiers.transfer import Transfer
from pbkv_cluster.cache.tree.node import Node
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier
from tests.cache.late_transfers import LateEngine

GPU, HOST, TEXT = 20, 10, 4  # blocks


def space(tenant: str = "") -> Namespace:
    return Namespace("m", "r", "f", "l", salt=tenant)


def text(name: str, blocks: int = TEXT) -> bytes:
    return pack([*random.Random(name).choices(range(1000), k=blocks * BLOCK_TOKENS), 1])


class Bus(LateEngine):
    """Copies nothing, as late as it may be."""

    labelled = True

    def _copy(self, transfer: Transfer) -> None:
        pass


class Rig:
    """A cache in which one tenant may lease 8 of 20 GPU blocks. Each workflow has a text of 4 blocks."""

    def __init__(
        self,
        policy: str = "lru",
        host: int = 0,
        share: float = 0.4,
        guard: bool = False,
        elsewhere: Elsewhere = NOWHERE,
    ) -> None:
        self.clock = ManualClock()
        config = CacheConfig(policy=policy, guard=guard, lease_share=share, decision_log_bytes=0)
        capacity = {Tier.GPU: GPU, Tier.HOST: host}
        self.cache = make_cache(capacity, config, Bus(1), self.clock, compute_seconds=lambda tokens: 9.0, elsewhere=elsewhere)
        self.steps = 0

    def run(self, name: str, tenant: str = "", workflow: str = "") -> None:
        """Runs a step that reads a text."""
        self.clock.advance(1.0)
        self.steps += 1
        handle = self.cache.open(StepIdentity(space(tenant), workflow or name, "a", self.steps, count(text(name))), text(name))
        assert handle is not None, "a step was not admitted"
        assert self.cache.grow(handle, count(text(name)))
        self.cache.commit(handle, text(name))
        self.cache.close(handle)
        self.cache.poll()
        self.cache.check_integrity()

    def lease(self, name: str, seconds: float = 1e6, tenant: str = "", lease_id: str = "", workflow: str = "") -> int:
        """Returns the blocks that are leased."""
        done = self.cache.requests.lease(space(tenant), text(name), lease_id or name, seconds, workflow)
        self.cache.check_integrity()
        return done.leased // BLOCK_TOKENS

    def press(self, texts: int = 20, tenant: str = "") -> None:
        """Runs steps of other workflows, whose texts fill the cache several times."""
        for number in range(texts):
            self.run(f"other-{number}", tenant)

    def cached(self, name: str, tenant: str = "") -> int:
        return sum(self.cache.captured(space(tenant), text(name)).values()) // BLOCK_TOKENS


@pytest.mark.parametrize("policy", ["lru", "retired-lru", "pbkv-paper", "pbkv", "lfu", "continuum", "kvflow"])
@pytest.mark.parametrize("host", [0, HOST])
def test_leased_blocks_stay_while_others_go(policy: str, host: int) -> None:
    rig = Rig(policy, host)
    rig.run("kept")
    rig.run("lost")
    assert rig.lease("kept") == TEXT
    rig.press()
    assert (rig.cached("kept"), rig.cached("lost")) == (TEXT, 0)


def test_leases_hold_while_the_guard_has_lru_evict() -> None:
    rig = Rig("pbkv-paper", HOST, guard=True)
    rig.cache.observer.fall_back()  # type: ignore[attr-defined]
    rig.run("kept")
    assert rig.lease("kept") == TEXT
    rig.press()
    assert rig.cached("kept") == TEXT


@pytest.mark.parametrize("guard", [False, True])
def test_a_lease_ends_at_its_time_and_not_before(guard: bool) -> None:
    for after, left in ((-0.001, TEXT), (0.0, 0)):
        rig = Rig("pbkv-paper", guard=guard)
        rig.run("kept")
        assert rig.lease("kept", 3600.0) == TEXT
        rig.press()  # 20 s
        assert rig.cached("kept") == TEXT
        rig.clock.advance(3600.0 - 20.0 - 1.0 + after)
        rig.run("last-0")  # at the very end of the lease, or just before it: the cache is full, so something must go
        assert rig.cached("kept") == left if after < 0 else rig.cached("kept") < TEXT
        assert len(rig.cache.leases) == (1 if after < 0 else 0)


def test_a_released_lease_keeps_nothing() -> None:
    rig = Rig()
    rig.run("kept")
    rig.lease("kept")
    assert rig.cache.requests.release("", "another") == 0
    assert rig.cache.requests.release("", "kept") == TEXT * BLOCK_TOKENS
    assert rig.cache.requests.release("", "kept") == 0
    rig.press()
    assert rig.cached("kept") == 0


def test_only_the_tenant_itself_can_release() -> None:
    rig = Rig()
    rig.run("kept", "red")
    rig.lease("kept", tenant="red")
    assert rig.cache.requests.release("blue", "kept") == 0
    assert rig.lease("kept", tenant="blue") == 0, "blue has no such blocks"
    assert len(rig.cache.leases) == 1


def test_a_lease_ends_with_its_workflow() -> None:
    rig = Rig()
    rig.run("kept", workflow="w")
    rig.lease("kept", workflow="w")
    rig.lease("kept", lease_id="longer")
    rig.cache.retire("w")
    assert len(rig.cache.leases) == 1
    rig.cache.requests.release("", "longer")
    rig.lease("kept", workflow="w that never ran here")
    rig.cache.retire("w that never ran here")
    assert len(rig.cache.leases) == 0
    assert not rig.cache.tree.leased


def test_a_tenant_gets_its_share_and_no_more() -> None:
    rig = Rig()
    for name in ("a", "b", "c"):
        rig.run(name, "red")
    assert [rig.lease(name, tenant="red") for name in ("a", "b", "c")] == [4, 4, 0]
    rig.cache.requests.release("red", "a")
    assert rig.lease("c", tenant="red") == 4
    assert rig.lease("c", tenant="red", lease_id="again") == 4, "what is leased already costs nothing"
    assert rig.cache.tree.leased == {"red": 8}


def test_all_tenants_together_get_half() -> None:
    rig = Rig()
    leased = 0
    for tenant in ("red", "blue", "green"):
        rig.run("a", tenant)
        leased += rig.lease("a", tenant=tenant)
    assert leased == GPU // 2


def test_a_prefix_is_leased_as_far_as_the_share_goes() -> None:
    rig = Rig(share=0.15)
    rig.run("kept")
    assert rig.lease("kept") == 3
    rig.press()
    assert rig.cached("kept") == 3


def test_nothing_is_leased_where_leases_are_off() -> None:
    rig = Rig(share=0.0)
    rig.run("kept")
    assert rig.lease("kept") == 0
    assert len(rig.cache.leases) == 0


def test_the_number_of_leases_is_bounded() -> None:
    rig = Rig()
    rig.run("kept")
    assert [rig.lease("kept", lease_id=str(number)) for number in range(LEASES_MAX)] == [TEXT] * LEASES_MAX
    assert rig.lease("kept", lease_id="one more") == 0
    assert rig.lease("kept", lease_id="0") == TEXT, "renewed"
    rig.clock.advance(2e6)
    assert (len(rig.cache.leases), rig.cache.leases.blocks) == (0, 0)


def test_tenants_share_the_number_of_leases() -> None:
    rig = Rig(share=1.0)
    greedy = ["red", "blue", "green", "white"]
    for tenant in [*greedy, "last"]:
        rig.run("kept", tenant)
    for number in range(LEASES_MAX):
        for tenant in greedy:
            rig.cache.requests.lease(space(tenant), text("kept"), str(number), 1e6 + number)
    assert len(rig.cache.leases) == LEASES_TOGETHER
    fair = LEASES_TOGETHER // 5
    asked = [rig.cache.requests.lease(space("last"), text("kept"), str(number), 1e6).leased for number in range(LEASES_MAX)]
    assert sum(map(bool, asked)) == fair, "as many as each of the others has then"
    held = Counter(lease.tenant for lease in rig.cache.leases)
    assert max(held.values()) - min(held.values()) <= 1
    assert len(rig.cache.leases) == LEASES_TOGETHER
    rig.cache.check_integrity()


def test_no_lease_of_another_is_ended_for_a_tenant_that_has_its_share() -> None:
    rig = Rig(share=1.0)
    rig.cache.leases.limit = TEXT
    for tenant in ("red", "blue", "green", "white", "last"):
        rig.run("kept", tenant)
    for number in range(LEASES_MAX):
        for tenant in ("red", "blue", "green", "white"):
            rig.cache.requests.lease(space(tenant), text("kept"), str(number), 1e6)
    assert rig.lease("kept", tenant="last") == TEXT
    displaced = rig.cache.tiers.decisions["lease_displaced"]
    assert displaced
    rig.run("other", "last")
    assert rig.lease("other", tenant="last") == 0
    assert rig.cache.tiers.decisions["lease_displaced"] == displaced


def test_leases_that_end_together_rank_each_block_once() -> None:
    rig = Rig()
    rig.run("kept")
    offered: list[Node] = []
    leases = BlockLeases(rig.cache.tree, offered.append, rig.clock, GPU, 1.0, Counter())
    for number in range(LEASES_MAX):
        assert leases.lease(space(), text("kept"), str(number), 10.0) == (TEXT, TEXT)
    offered.clear()
    rig.clock.advance(10.0)
    assert len(leases) == 0
    assert len(offered) == len(set(offered)) > 0


def test_a_renewed_lease_ends_when_it_was_told_last() -> None:
    rig = Rig()
    rig.run("kept")
    rig.lease("kept", 10.0)
    rig.lease("kept", 100.0)
    rig.clock.advance(50.0)
    assert len(rig.cache.leases) == 1
    rig.lease("kept", 10.0)
    rig.clock.advance(10.0)
    assert len(rig.cache.leases) == 0


def test_renewals_take_no_memory() -> None:
    rig = Rig()
    rig.run("kept")
    for number in range(1000):
        rig.clock.advance(0.01)
        rig.cache.requests.lease(space(), text("kept"), str(number % 3), 3600.0)
        assert rig.cache.leases.entries <= 2 * len(rig.cache.leases) + 64
    assert len(rig.cache.leases) == 3
    rig.clock.advance(3600.0)
    assert len(rig.cache.leases) == 0


def test_steps_get_the_room_of_leased_blocks_where_there_is_no_other() -> None:
    rig = Rig(share=1.0)
    for name in ("a", "b", "c", "d"):
        rig.run(name)
        assert rig.lease(name) == TEXT
    wide = text("wide", GPU - 2)
    handle = rig.cache.open(StepIdentity(space(), "wide", "a", 0, count(wide)), wide)
    assert handle is not None, "leases hold up a step"
    assert rig.cache.grow(handle, count(wide))
    rig.cache.check_integrity()
    assert rig.cache.leases.blocks <= 1


def test_blocks_are_not_prefetched_in_place_of_leased_ones() -> None:
    rig = Rig(host=HOST, share=1.0)
    rig.run("early")
    for name in ("a", "b", "c", "d", "e"):
        rig.run(name)
        rig.lease(name)
        rig.cache.retire(name)
    free = GPU - rig.cache.used_blocks(Tier.GPU)
    assert rig.cache.requests.prefetch(space(), text("early")).loaded == free * BLOCK_TOKENS < TEXT * BLOCK_TOKENS
    rig.cache.requests.release("", "e")
    assert rig.cache.requests.prefetch(space(), text("early")).resident == TEXT * BLOCK_TOKENS


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), share=st.sampled_from((0.05, 0.2, 0.5, 1.0)))
def test_no_history_lets_leases_hold_up_a_step(seed: int, share: float) -> None:
    """Whatever is leased, a step is admitted exactly where it would be without leases: where running ones leave it room."""
    chance = random.Random(seed)
    rig = Rig(chance.choice(("lru", "pbkv-paper")), chance.choice((0, HOST)), share)
    for number in range(60):
        rig.run(str(chance.randrange(12)), chance.choice(("", "red")))
        name, tenant = str(chance.randrange(12)), chance.choice(("", "red"))
        rig.lease(name, chance.random() * 30, tenant, lease_id=str(number % 9), workflow=chance.choice(("", "3", "4")))
        assert all(blocks <= int(share * GPU) for blocks in rig.cache.tree.leased.values())
        if chance.random() < 0.1:
            rig.cache.retire(str(chance.randrange(12)))
    rig.clock.advance(30.0)
    assert (len(rig.cache.leases), rig.cache.leases.blocks) == (0, 0)


class Sibling(Nowhere):
    """Another worker has everything."""

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        return [Tier.SIBLING for _ in keys]


def test_a_prefetch_gets_what_another_worker_has() -> None:
    rig = Rig(host=HOST, elsewhere=Sibling())
    done = rig.cache.requests.prefetch(space(), text("there"))
    assert (done.loaded, done.resident, done.tokens) == (64, 64, 64)
    assert done.tiers == {Tier.SIBLING: 64}
    rig.cache.check_integrity()
    rig.run("there")
    assert rig.cache.tiers.prefetched.total.used == TEXT
    again = rig.cache.requests.prefetch(space(), text("there"))
    assert (again.loaded, again.tiers) == (0, {Tier.GPU: 64})


def test_a_prefetch_from_another_worker_takes_free_and_retired_space_only() -> None:
    rig = Rig(host=HOST, elsewhere=Sibling())
    for name in ("a", "b", "c", "d"):
        rig.run(name)
    for name in ("e", "f", "g"):
        done = rig.cache.requests.prefetch(space(), text(name))
        assert done.loaded == (64 if name == "e" else 0), "no space is free"
        rig.cache.check_integrity()
    assert [rig.cached(name) for name in ("a", "b", "c", "d")] == [TEXT] * 4
    assert rig.cached("e") == TEXT
    rig.cache.retire("a")
    assert rig.cache.requests.prefetch(space(), text("h")).loaded == 64
