"""What is about to leave host memory is named to siblings, and free host memory takes it in, at nobody's expense."""

from collections.abc import Iterable, Sequence

import pytest

from pbkv_cluster.cache.prefetch import shelter
from pbkv_cluster.cache.prefetch.shelter import LeavingPath, ShelterState
from pbkv_cluster.cache.tiers.elsewhere import Nowhere
from pbkv_cluster.cache.tree.node import BlockLease, new_slots
from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from tests.cache.staging_rig import BLOCK_S, Rig
from tests.cache.test_leases import TEXT, space, text

DIGEST = space().digest()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole text is copied at a time, however slow the bus."""
    monkeypatch.setattr(shelter, "MOST_S", 1.0)


class Siblings(Nowhere):
    """They have some blocks, by key; None: all."""

    def __init__(self, keys: set[bytes] | None = None, kind: Tier = Tier.SIBLING) -> None:
        super().__init__()
        self.keys = keys
        self.kind = kind

    def tiers(self, keys: Iterable[bytes]) -> Sequence[Tier]:
        found = []
        for key in keys:
            if self.keys is not None and key not in self.keys:
                break
            found.append(self.kind)
        return found


def path(name: str, blocks: int = TEXT) -> bytes:
    return text(name, blocks)[: blocks * BLOCK_BYTES]


def keys(name: str) -> list[bytes]:
    return block_keys(space(), path(name))


def leaving(rig: Rig) -> set[bytes]:
    """The texts that are named."""
    found = rig.cache.shelter.leaving()
    assert all(each.digest == DIGEST for each in found)
    return {each.tokens for each in found}


def take_in(rig: Rig, *names: str, first: int = 0, blocks: int = TEXT) -> int:
    taken = rig.cache.shelter.take_in(LeavingPath(DIGEST, path(name, blocks), first) for name in names)
    rig.cache.check_integrity()
    assert (taken.state is ShelterState.COPYING) >= bool(taken.blocks)
    return taken.blocks


def full(disk: int = 0, siblings: Siblings | None = None) -> Rig:
    """GPU and host memory are full of texts of open workflows."""
    rig = Rig(disk=disk, policy="lru", elsewhere=siblings or Nowhere())
    for name in "abcdef":
        rig.run(name)
    return rig


def test_what_is_named_is_what_is_dropped_next() -> None:
    rig = full()
    named = {name for name in "abcdef" if any(path(name).startswith(tokens) for tokens in leaving(rig))}
    before = {name: sum(rig.tiers(name).values()) for name in "abcdef"}
    rig.run("x", blocks=1)
    dropped = {name for name, blocks in before.items() if sum(rig.tiers(name).values()) < blocks}
    assert len(named) == 1
    assert named == dropped


def test_nothing_is_named_while_there_is_room() -> None:
    rig = Rig(policy="lru")
    for name in "abc":
        rig.run(name)
    assert leaving(rig) == set()


def test_nothing_is_named_that_the_disk_would_take() -> None:
    assert leaving(full(disk=64)) == set()


def test_what_no_open_workflow_has_used_is_not_named() -> None:
    rig = full()
    for name in "abcdef":
        rig.cache.retire(name)
    assert leaving(rig) == set()


def test_what_a_sibling_has_is_not_named() -> None:
    assert leaving(full(siblings=Siblings())) == set()
    assert leaving(full(siblings=Siblings(kind=Tier.REMOTE))) != set(), "another node is no sibling"


def test_names_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelter, "PATHS_BYTES", BLOCK_BYTES - 1)
    assert leaving(full()) == set()


def test_a_path_that_is_too_long_keeps_no_other_from_being_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelter, "PATHS_BYTES", TEXT * BLOCK_BYTES)
    rig = Rig(host=40, policy="lru")
    rig.run("long", blocks=2 * TEXT)
    for number in range(22):
        rig.run(f"short {number}", blocks=2)
    assert leaving(rig) == {path("short 0", blocks=2), path("short 1", blocks=2)}


def test_what_is_leased_is_not_named() -> None:
    rig = full()
    for node in rig.cache.tree.walk():
        node.leases = frozenset({BlockLease("", "l", "", node, 100.0)})
    assert leaving(rig) == set()


def test_the_blocks_that_only_the_gpu_has_are_named_as_such() -> None:
    """A sibling must have them itself, or it could not find what follows them."""
    rig = full()
    found = {each.tokens: each.first for each in rig.cache.shelter.leaving()}
    (tokens,) = found
    name = next(name for name in "abcdef" if path(name).startswith(tokens))
    assert found[tokens] == rig.tiers(name).get(Tier.GPU, 0)


def test_free_slots_take_in_what_a_sibling_has() -> None:
    rig = Rig(elsewhere=Siblings())
    assert take_in(rig, "a") == TEXT
    rig.settle()
    assert rig.tiers("a") == {Tier.HOST: TEXT}
    assert rig.cache.tiers.decisions["shelter"] == TEXT
    assert take_in(rig, "a") == 0, "it is there already"
    assert rig.run("a") == {Tier.HOST: TEXT * 16}, "a step of it finds it"


def test_what_follows_a_known_beginning_is_taken_in() -> None:
    siblings = Siblings(set())
    rig = Rig(elsewhere=siblings)
    rig.run("a", blocks=2)
    siblings.keys = None
    assert take_in(rig, "a") == TEXT - 2
    rig.settle()
    assert sum(rig.tiers("a").values()) == TEXT


@pytest.mark.parametrize("known", [0, 2])
def test_what_follows_blocks_of_a_gpu_alone_is_taken_in_where_these_are_known(known: int) -> None:
    siblings = Siblings(set())
    rig = Rig(elsewhere=siblings)
    if known:
        rig.run("a", blocks=known)
    siblings.keys = None
    assert take_in(rig, "a", first=2) == (TEXT - 2 if known else 0)


@pytest.mark.parametrize("missing", range(TEXT))
def test_nothing_is_taken_in_that_follows_a_gap(missing: int) -> None:
    """It could not be found."""
    rig = Rig(elsewhere=Siblings(set(keys("a")) - {keys("a")[missing]}))
    assert take_in(rig, "a") == missing
    rig.settle()
    assert sum(rig.tiers("a").values()) == missing


def test_a_long_path_is_taken_in_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelter, "MOST", 3)
    rig = Rig(host=40, elsewhere=Siblings())
    taken = list[int]()
    while not taken or taken[-1]:
        taken.append(take_in(rig, "a", blocks=8))
        rig.settle()
    assert taken == [3, 3, 2, 0]


def test_no_more_is_copied_at_a_time_than_a_step_can_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelter, "MOST_S", 2 * BLOCK_S)
    assert take_in(Rig(elsewhere=Siblings()), "a") == 2


def test_what_an_earlier_process_has_left_is_no_free_slot() -> None:
    rig = Rig(elsewhere=Siblings())
    pool = rig.cache.tiers[Tier.HOST].pool
    pool.set_aside(new_slots(range(pool.capacity - TEXT)))
    assert take_in(rig, "a") == 0


def test_some_slots_are_left_free() -> None:
    rig = Rig(host=2 * TEXT, elsewhere=Siblings())
    assert take_in(rig, "a") == TEXT
    rig.settle()
    assert take_in(rig, "b") == 0


def test_no_root_is_made_for_what_nobody_has() -> None:
    rig = Rig(elsewhere=Siblings(set()))
    assert rig.cache.shelter.take_in([LeavingPath(bytes(16), path("a"), 0)]) == (0, ShelterState.FULL)
    assert rig.cache.tree.known_root(bytes(16)) is None


def test_the_first_path_that_fits_is_taken_in() -> None:
    siblings = Siblings(set(keys("b")))
    rig = Rig(elsewhere=siblings)
    assert take_in(rig, "a", "b", "b") == TEXT
    rig.settle()
    assert rig.tiers("b") == {Tier.HOST: TEXT}


def test_others_are_told_that_it_is_sheltered() -> None:
    rig = Rig(elsewhere=Siblings())
    take_in(rig, "a")
    rig.settle()
    residency = rig.cache.tiers.residency()
    assert all(residency[key].sheltered and residency[key].slot >= 0 for key in keys("a"))
    rig.run("a")
    assert not any(rig.cache.tiers.residency()[key].sheltered for key in keys("a")), "it is the worker's own now"


def test_too_few_free_slots_take_in_nothing() -> None:
    rig = Rig(host=TEXT - 1, elsewhere=Siblings())
    assert take_in(rig, "a") == 0


def test_nothing_is_evicted_for_it() -> None:
    siblings = Siblings(set())
    rig = full(siblings=siblings)
    rig.cache.retire("a")
    before = {name: rig.tiers(name) for name in "abcdef"}
    siblings.keys = None
    assert take_in(rig, "x") == 0
    assert {name: rig.tiers(name) for name in "abcdef"} == before


@pytest.mark.parametrize("policy", ["lru", "pbkv-paper", "pbkv"])
@pytest.mark.parametrize("texts", ["abcd", "abcde", "abcdefg", "abcabdacd"])
def test_the_workers_own_blocks_lie_where_they_would_without_it(texts: str, policy: str) -> None:
    siblings = Siblings()
    alone, sheltering = Rig(policy=policy), Rig(policy=policy, elsewhere=siblings)
    assert take_in(sheltering, "s") == TEXT
    sheltering.settle()
    siblings.keys = set()
    for name in texts:
        assert sheltering.run(name) == alone.run(name)
    assert {name: sheltering.tiers(name) for name in texts} == {name: alone.tiers(name) for name in texts}


def test_who_asks_learns_whether_to_ask_again() -> None:
    def state(name: str) -> ShelterState:
        return rig.cache.shelter.take_in([LeavingPath(DIGEST, path(name), 0)]).state

    rig = Rig(host=10, elsewhere=Siblings())
    assert state("a") is ShelterState.COPYING
    assert state("b") is ShelterState.COPYING
    assert state("c") is ShelterState.COPYING
    rig.settle()
    assert state("a") is ShelterState.HELD
    assert state("b") is ShelterState.COPYING
    assert state("c") is ShelterState.FULL, "no room, whatever is being copied"


def test_one_path_is_taken_in_at_a_time() -> None:
    rig = Rig(host=12, elsewhere=Siblings())
    assert take_in(rig, "a") == TEXT
    assert take_in(rig, "b") == 0, "the copies of the first are under way"
    rig.settle()
    assert take_in(rig, "b") == TEXT


def test_what_is_slower_to_copy_than_to_compute_is_not_taken_in() -> None:
    rig = Rig(elsewhere=Siblings(), compute_s=0.001)
    assert take_in(rig, "a") == 0


def test_what_has_left_the_sibling_meanwhile_leaves_no_trace() -> None:
    rig = Rig(elsewhere=Siblings())
    rig.bus.lost = True
    assert take_in(rig, "a") == TEXT
    rig.settle()
    assert rig.tiers("a") == {}
    assert rig.cache.used_blocks(Tier.HOST) == 0
