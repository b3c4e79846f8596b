"""Whose room in host memory staging takes, and how much."""

from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier
from tests.cache.staging_rig import BLOCK_S, QUEUE, REQUEST, Peer, Rig
from tests.cache.test_leases import TEXT, space, text


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


def test_queued_steps_do_not_take_the_room_of_each_other() -> None:
    rig = Rig(disk=400)
    rig.run_and_end("abcdefgh")
    for _ in range(8):
        rig.ahead("e", "d", "a", "b")
        rig.settle()
    assert rig.tiers("e") == rig.tiers("d") == {Tier.HOST: TEXT}, "those that are admitted first"
    assert rig.count(QUEUE).wasted == 0


def test_what_a_later_step_finds_in_host_memory_stays_there_for_it() -> None:
    rig = Rig(disk=400)
    rig.run_and_end("abcdefgh")
    before = rig.tiers("d")[Tier.HOST], rig.tiers("e")[Tier.HOST]
    for _ in range(4):
        rig.ahead("a", "d", "e")
        rig.settle()
    assert min(before) > 0
    assert (rig.tiers("d")[Tier.HOST], rig.tiers("e")[Tier.HOST]) >= before


def test_what_comes_from_another_node_does_not_leave_for_a_later_step() -> None:
    rig = Rig(host=4, disk=400, elsewhere=Peer())
    rig.run_and_end("abcdefgh")
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
