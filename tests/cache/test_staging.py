"""Staging: what comes to host memory ahead of its use, and what a step makes of it."""

import pytest

from pbkv_cluster.cache.guard.guard import Guard
from pbkv_cluster.cache.prefetch import missing
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, count
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.remote_steps import RemoteStepBegan
from tests.cache.staging_rig import BLOCK_S, FORECAST, QUEUE, Peer, Rig
from tests.cache.test_leases import TEXT, space, text


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


def test_a_step_waits_for_a_late_node_as_long_as_computing_takes_and_loads_what_is_near() -> None:
    rig = Rig(elsewhere=Peer(), compute_s=2.0)
    assert rig.ahead("a", seconds=2.5 * BLOCK_S) == 2
    rig.settle()
    assert rig.ahead("a") == TEXT - 2  # and then the other node says nothing
    tokens = text("a", TEXT)
    step = StepIdentity(space(), "a", "a-a", 1, count(tokens))
    first = rig.cache.open(step, tokens)
    assert first is not None
    rig.clock.advance(1.9)
    second = rig.cache.open(step._replace(workflow="b"), tokens)
    assert second is not None
    rig.cache.poll()
    assert not rig.cache.broken()
    rig.clock.advance(0.2)
    rig.cache.poll()
    assert set(rig.cache.broken()) == {first, second}, "who comes later has no more patience, and takes none from the first"
    rig.bus.wait([each for each in first.waits_for if not each.may_be_late])
    for handle in (first, second):
        rig.cache.close(handle)
    rig.cache.poll()
    assert rig.tiers("a") == {Tier.GPU: 2}, "what was near has been loaded, and waited for nobody"
    rig.settle()
    assert rig.run("a") == {Tier.GPU: 2 * BLOCK_TOKENS}


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


def test_what_is_slower_to_load_ahead_than_to_compute_is_counted() -> None:
    rig = Rig(disk=40, prefetch="queue")
    rig.run_and_end("abcdefg")
    assert rig.tiers("a") == {Tier.DISK: TEXT}
    near = next(name for name in "bcdefg" if set(rig.tiers(name)) == {Tier.HOST})
    rig.compute_s = 0.9 * TEXT * BLOCK_S
    assert rig.ahead("a", near) == 0
    decisions = rig.cache.tiers.decisions
    assert (decisions["stage_skipped_slower"], decisions["prefetch_skipped_slower"]) == (TEXT, TEXT)
    rig.compute_s = 9.0
    rig.ahead("a", near)
    assert decisions["prefetch_queue"] > 0
    assert (decisions["stage_skipped_slower"], decisions["prefetch_skipped_slower"]) == (TEXT, TEXT)


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


def test_the_learnt_policy_is_asked_of_a_context_of_which_the_cache_holds_nothing() -> None:
    rig = Rig(elsewhere=Peer(), policy="pbkv")
    tokens = text("a")
    began = RemoteStepBegan(0, 0, "a-a", None, "", -1, 0, tokens[: TEXT * BLOCK_BYTES], 0.0, count(tokens))
    assert rig.cache.hear("a", [began], space())
    assert rig.ahead() == TEXT, "before anything is learnt, a use is as likely as not"
    rig.settle()
    assert rig.tiers("a") == {Tier.HOST: TEXT}


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
