"""The log of a cache's last decisions."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.decisions.log import DecisionLog
from pbkv_cluster.cache.decisions.reasons import Kind, reason_of
from pbkv_cluster.cache.explanation import BlockExplanation, BlockSearch, Standing
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.core.blocks import KEY_BYTES, Namespace, block_keys
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.core.usage import Tier

NAMESPACE = Namespace("m", "r", "float32", "l")
BIG = 1 << 20


def make(gpu: int, host: int, log_bytes: int = BIG, policy: str = "lru") -> tuple[KVCache, DecisionLog, ManualClock]:
    clock = ManualClock()
    log = DecisionLog(clock, log_bytes)
    config = CacheConfig(policy=policy)
    cache = KVCache({Tier.GPU: gpu, Tier.HOST: host}, config, NullTransferEngine(), clock, log=log)
    return cache, log, clock


def run(cache: KVCache, clock: ManualClock, workflow: str, seed: int, blocks: int, number: int = 0) -> list[bytes]:
    """A step whose prompt has so many full blocks. Returns their keys."""
    length = blocks * BLOCK_TOKENS + 1  # the last token is always computed
    tokens = pack([seed * 1000 + at for at in range(length)])
    step = StepIdentity(NAMESPACE, workflow, "agent", number, length)
    handle = cache.open(step, tokens)
    assert handle is not None
    assert cache.grow(handle, length)
    cache.commit(handle, tokens)
    cache.close(handle)
    clock.advance(1.0)
    return block_keys(NAMESPACE, tokens)


def history(log: DecisionLog, key: bytes) -> list[str]:
    """The reasons of the decisions about a block, in order."""
    return [decision.reason for decision in reversed(log.latest_first()) if decision.is_about(key)]


def test_a_block_s_way_through_the_tiers_is_told_in_order() -> None:
    cache, log, clock = make(gpu=5, host=3)
    first = run(cache, clock, "one", 1, 3)
    run(cache, clock, "two", 2, 3)
    # Of the first workflow's blocks, the last ones left the GPU for the host.
    assert history(log, first[2]) == ["compute", "evict_active", "demote"]
    run(cache, clock, "one", 1, 3, 1)
    assert history(log, first[2])[3:] == ["load"]
    evicted = next(each for each in reversed(log.latest_first()) if each.reason == "evict_active")
    assert (evicted.workflows, evicted.value is not None) == (("one",), True)


def test_what_is_dropped_is_told_after_it_has_left() -> None:
    cache, log, clock = make(gpu=5, host=0)
    first = run(cache, clock, "one", 1, 3)
    run(cache, clock, "two", 2, 3)
    assert history(log, first[2]) == ["compute", "evict_active", "drop"]
    cache.clear()
    assert all(history(log, key)[-1] in ("drop", "clear") for key in first)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(1, 6)), min_size=5, max_size=40))
def test_it_counts_what_the_cache_counts_and_every_code_has_words(steps: list[tuple[str, int, int]]) -> None:
    cache, log, clock = make(gpu=8, host=5, policy="pbkv-paper")
    for number, (workflow, seed, blocks) in enumerate(steps):
        run(cache, clock, workflow, seed, blocks, number)
        if number % 7 == 6:
            cache.retire(workflow)
    told: Counter[str] = Counter()
    for decision in log.latest_first():
        assert reason_of(decision.reason) is not None, decision.reason
        told[decision.reason] += decision.blocks
    counted = cache.tiers.decisions
    # Blocks that go because one before them is dropped are told of, and not counted.
    drops = {code for code in counted if (found := reason_of(code)) and found.kind is Kind.DROPPED}
    assert {code: told[code] for code in counted if counted[code] and code not in drops} == {
        code: times for code, times in counted.items() if times and code not in drops
    }
    assert all(told[code] >= counted[code] for code in drops)


def test_it_keeps_within_its_bytes_and_the_latest() -> None:
    cache, log, clock = make(gpu=64, host=0, log_bytes=4000)
    for seed in range(40):
        keys = run(cache, clock, "w", seed, 4)
    assert 0 < log.size_bytes <= 4000
    assert history(log, keys[-1]) == ["compute"]
    ages = [each.at for each in log.latest_first()]
    assert ages == sorted(ages, reverse=True)


def test_without_bytes_it_keeps_nothing_and_hashes_nothing() -> None:
    cache, log, clock = make(gpu=8, host=8, log_bytes=0)
    run(cache, clock, "w", 1, 4)
    assert log.latest_first() == []
    assert [node.keys for node in cache.tree.walk()] == [b""]


def explain(cache: KVCache, key: bytes, now: float) -> BlockExplanation:
    search = BlockSearch(cache, key.hex())
    while search.look(1):
        pass
    node = search.found[key]
    explanation = BlockExplanation(cache, node, [node.key(block) for block in range(node.blocks)].index(key), now)
    while explanation.look(1):
        pass
    return explanation


def test_a_block_s_place_in_the_order_is_that_in_which_blocks_leave() -> None:
    cache, log, clock = make(gpu=16, host=0)
    keys = [run(cache, clock, f"w{seed}", seed, 3)[-1] for seed in range(4)]
    places = [explain(cache, key, clock.now()).places for key in keys]
    assert [(place.tier, place.standing, place.ahead, place.candidates) for (place,) in places] == [
        (Tier.GPU, Standing.CANDIDATE, ahead, 4) for ahead in range(4)
    ]
    assert [explain(cache, key, clock.now()).run.workflows for key in keys] == [(f"w{seed}",) for seed in range(4)]
    run(cache, clock, "new", 9, 6)
    gone = [key for key in keys if "drop" in history(log, key)]
    assert gone == keys[: len(gone)] != []


def test_blocks_are_found_by_any_beginning_of_their_keys() -> None:
    cache, _, clock = make(gpu=64, host=0)
    keys = [key for seed in range(5) for key in run(cache, clock, "w", seed, 5)]
    for length in (1, 2, 5, 2 * KEY_BYTES):
        wanted = keys[7].hex()[:length]
        search = BlockSearch(cache, wanted)
        while search.look(2):
            pass
        assert set(search.found) == {key for key in keys if key.hex().startswith(wanted)}
