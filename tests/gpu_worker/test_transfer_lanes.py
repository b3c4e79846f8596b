"""Who waits for whom between copies, and how long they are expected to take."""

import threading

import numpy as np
import pytest

from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.kv import block_copies, host_arrivals
from pbkv_cluster.gpu_worker.kv.lanes.lane_speed import TRIAL_AFTER_S, TRIAL_BLOCKS
from tests.gpu_worker.transfer_rig import SHAPE, Held, HeldOthers, Rig, fetch, labels, load, store
from tests.polling import wait_for


def test_nothing_waits_for_a_copy_that_it_does_not_need() -> None:
    rig = Rig(held=True)
    rig.storage.gpu[0] = 7.0
    stored = rig.submit(store([0], [0]))
    assert rig.engine.completed() == []  # the engine's thread goes on, and other copies do
    assert isinstance(rig.copies, Held)
    rig.region.slots.write(1, labels([9])[0], np.zeros(SHAPE.block_bytes, np.uint8))
    assert rig.carry_out(load([1], [3])) == []
    assert not stored.done
    rig.copies.go.set()
    wait_for(lambda: list(rig.engine.completed()) == [stored])


def test_no_load_waits_behind_one_that_waits_for_another_node() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    stored = rig.submit(store([1], [1]))
    rig.engine.wait((stored,))
    staged = rig.submit(fetch(Tier.HOST, [0]))
    late = rig.submit(load([0], [3], after=(staged,)))
    assert late.layers is None, "no batch begins that would have to wait for another node"
    near = rig.submit(load([1], [4]))
    assert near.layers is not None
    rig.engine.wait((near,))
    rig.engine.wait((late,), timeout_s=1e-3)
    assert list(rig.engine.completed()) == [stored, near]
    others.go.set()
    rig.engine.wait((late,))
    assert list(rig.engine.completed()) == [staged, late]


def test_an_engine_that_closes_leaves_what_waits_for_another_node() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    late = rig.submit(load([0], [3], after=(rig.submit(fetch(Tier.HOST, [0])),)))
    threading.Timer(0.05, others.go.set).start()
    rig.engine.close()
    assert late not in rig.engine.completed()


def test_each_direction_is_expected_to_take_what_it_has_taken_with_what_waits_there() -> None:
    rig = Rig(held=True)
    assert rig.engine.seconds(Tier.GPU, Tier.HOST, 10) == 0.0
    assert isinstance(rig.copies, Held)
    rig.copies.go.set()
    rig.carry_out(store([0, 1], [3, 4]))
    one = rig.engine.seconds(Tier.GPU, Tier.HOST, 1)
    assert one > 0.0
    assert rig.engine.seconds(Tier.GPU, Tier.HOST, 10) == pytest.approx(10 * one)
    assert rig.engine.seconds(Tier.HOST, Tier.GPU, 10) == 0.0
    rig.copies.go.clear()
    waiting = rig.submit(store([2, 3], [0, 1]))
    assert rig.engine.seconds(Tier.GPU, Tier.HOST, 1) == pytest.approx(3 * one)
    rig.copies.go.set()
    rig.engine.wait((waiting,))


def test_what_is_staged_from_a_place_delays_what_is_loaded_from_there() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    others.go.set()
    for target in (Tier.GPU, Tier.HOST):
        assert not rig.carry_out(fetch(target, [0, 1]))
    to_gpu, to_host = (rig.engine.seconds(Tier.REMOTE, target, 1) for target in (Tier.GPU, Tier.HOST))
    assert min(to_gpu, to_host) > 0.0
    others.go.clear()
    staging = rig.submit(fetch(Tier.HOST, [2, 3]))
    assert rig.engine.seconds(Tier.REMOTE, Tier.GPU, 1) == pytest.approx(to_gpu + 2 * to_host)
    assert rig.engine.seconds(Tier.REMOTE, Tier.HOST, 1) == pytest.approx(3 * to_host)
    others.go.set()
    rig.engine.wait((staging,))
    rig.engine.close()


def test_what_does_not_arrive_says_nothing_of_how_fast_it_would_have_come() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    others.go.set()
    others.has = ()
    assert rig.carry_out(fetch(Tier.GPU, [0, 1])) == [0, 1]
    assert rig.engine.seconds(Tier.REMOTE, Tier.GPU, 1) == 0.0
    others.has = (0,)
    others.go.clear()
    threading.Timer(0.2, others.go.set).start()
    assert rig.carry_out(fetch(Tier.GPU, [0, 1])) == [1]
    believed = rig.engine.seconds(Tier.REMOTE, Tier.GPU, 1)
    assert 0.0 < believed < 0.1, "to reach the node took 0.2 s"
    for _ in range(9):
        assert rig.carry_out(fetch(Tier.GPU, [1])) == [1]
    assert rig.engine.seconds(Tier.REMOTE, Tier.GPU, 1) == believed


def test_a_trial_is_due_while_nothing_is_copied_and_only_then() -> None:
    others = HeldOthers()
    rig = Rig(others=others)
    others.go.set()
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.GPU) == 0
    rig.carry_out(fetch(Tier.GPU, [0, 1]))
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.GPU) == 0
    rig.clock.advance(TRIAL_AFTER_S)
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.GPU) == TRIAL_BLOCKS
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.HOST) == 0, "that has never been measured"
    others.go.clear()
    trial = rig.submit(fetch(Tier.GPU, [2]))
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.GPU) == 0, "one is on its way"
    others.go.set()
    rig.engine.wait((trial,))
    assert list(rig.engine.completed()) == [trial]
    assert rig.engine.trial_blocks(Tier.REMOTE, Tier.GPU) == 0


@pytest.mark.parametrize("target", [Tier.GPU, Tier.HOST])
def test_what_is_left_of_a_fetch_that_was_given_up_is_not_read(target: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_copies.CpuLanding, "blocks", 1)
    monkeypatch.setattr(host_arrivals, "BATCH", 1)
    others = HeldOthers()
    rig = Rig(others=others)
    rig.carry_out(store([0], [2]))
    late, queued = rig.submit(fetch(target, [0, 1, 2])), rig.submit(fetch(target, [3]))
    others.begun.wait(30)
    late.given_up = queued.given_up = True
    others.go.set()
    rig.engine.wait((late, queued))
    assert list(rig.engine.completed()) == [late, queued]
    assert (list(late.failed), list(queued.failed), others.reads) == ([1, 2], [3], 1)
    assert {block.slot for block in rig.region.stored()} <= {0} | ({2} if target is Tier.GPU else set())
    wanted = rig.submit(fetch(target, [4]))
    rig.engine.wait((wanted,))
    assert not wanted.failed
