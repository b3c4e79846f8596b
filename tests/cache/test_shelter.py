"""What is about to leave host memory is named to siblings, and free host memory takes it in, at nobody's expense."""

from collections.abc import Iterable, Sequence

import pytest

from pbkv_cluster.cache.tiers.elsewhere import Nowhere
from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.core.usage import Tier
from tests.cache.staging_rig import Rig
from tests.cache.test_leases import TEXT, space, text

DIGEST = space().digest()
MUCH = 1 << 20  # bytes


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


def leaving(rig: Rig, most_bytes: int = MUCH) -> set[bytes]:
    """The texts that are named."""
    found = rig.cache.shelter.leaving(most_bytes)
    assert all(each.digest == DIGEST for each in found)
    return {each.tokens for each in found}


def take_in(rig: Rig, name: str, blocks: int = TEXT) -> int:
    taken = rig.cache.shelter.take_in(DIGEST, path(name, blocks))
    rig.cache.check_integrity()
    return taken


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


def test_names_are_bounded_in_bytes() -> None:
    assert leaving(full(), BLOCK_BYTES - 1) == set()


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


@pytest.mark.parametrize("missing", range(TEXT))
def test_a_path_with_a_gap_is_not_taken_in(missing: int) -> None:
    """What follows the gap could not be found."""
    rig = Rig(elsewhere=Siblings(set(keys("a")) - {keys("a")[missing]}))
    assert take_in(rig, "a") == 0
    assert rig.tiers("a") == {}


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


def test_one_path_is_taken_in_at_a_time() -> None:
    rig = Rig(elsewhere=Siblings())
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
