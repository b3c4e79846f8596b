"""What vLLM holds is known by the block keys of the cluster, whatever it calls its blocks."""

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.locations.residency import NOWHERE, Residency
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.integrations.vllm_worker.held_blocks import BYTES_A_BLOCK, HeldBlocks
from pbkv_cluster.store.kv_events.messages import BlockRemoved, BlockStored
from tests.integrations.vllm_worker.scripted import NAMESPACE, Rig, ScriptedEngine, stored

PROMPT = list(range(100))  # three blocks of 32 tokens, six of 16, and some more
KEYS = block_keys(NAMESPACE, pack(PROMPT))
ON_GPU, IN_HOST = Residency(frozenset([Tier.GPU])), Residency(frozenset([Tier.HOST]))


def rig() -> Rig:
    return Rig(ScriptedEngine())


def test_a_block_of_vllm_is_some_of_ours() -> None:
    held = (it := rig()).held
    held.stored(stored(PROMPT[:64], [b"one", b"two"]))
    assert it.changes == [(key, ON_GPU) for key in KEYS[:4]]
    assert held.match(KEYS) == {Tier.GPU: 64}
    held.stored(stored(PROMPT[64:96], [b"three"], parent=b"two"))
    assert held.match(KEYS) == {Tier.GPU: 96}
    assert set(held.residency()) == set(KEYS)
    held.removed(BlockRemoved([b"two"], "GPU"))
    assert held.match(KEYS) == {Tier.GPU: 32}
    assert it.changes[-2:] == [(key, NOWHERE) for key in KEYS[2:4]]


def test_a_label_tells_what_leads_to_its_block() -> None:
    labels = []
    held = HeldBlocks(NAMESPACE, lambda label, residency: labels.append(label))
    held.stored(stored(PROMPT[:64], [b"one", b"two"]))
    assert all(label.is_consistent for label in labels)
    assert [label.parent for label in labels] == [NAMESPACE.digest(), *KEYS[:3]]
    assert {label.namespace for label in labels} == {NAMESPACE.digest()}


def test_a_tenants_blocks_are_found_under_its_keys_alone() -> None:
    held = rig().held
    held.stored(stored(PROMPT[:32], [b"salted"], salt="tenant"))
    held.stored(stored(PROMPT[32:64], [b"next"], parent=b"salted"))
    assert held.match(KEYS) == {}
    assert held.match(block_keys(replace(NAMESPACE, salt="tenant"), pack(PROMPT))) == {Tier.GPU: 64}


def test_a_block_is_under_no_tenant_only_if_that_is_told() -> None:
    """The tier of a connector may have a tenant's block that the GPU has no more, and say no more of it than its tokens."""
    held = rig().held
    untold = replace(stored(PROMPT[:32], [b"salted"], medium="CPU"), extra=())
    held.stored(untold)
    assert (len(held), held.unknown.orphans) == (0, 1)
    held.stored(stored(PROMPT[:32], [b"salted"], salt="tenant"))
    held.stored(untold)
    held.removed(BlockRemoved([b"salted"], "GPU"))
    assert held.match(block_keys(replace(NAMESPACE, salt="tenant"), pack(PROMPT))) == {Tier.HOST: 32}
    held.stored(replace(stored(PROMPT[:32], [b"own"]), extra=()))  # vLLM's own say it where there is something to say
    held.removed(BlockRemoved([b"own"], "GPU"))
    held.stored(stored(PROMPT[:32], [b"own"], medium="CPU"))
    assert held.match(KEYS) == {Tier.HOST: 32}


def test_a_block_lies_in_several_tiers_until_the_last_one() -> None:
    held = (it := rig()).held
    held.stored(stored(PROMPT[:32], [b"one"]))
    held.stored(stored(PROMPT[:32], [b"one"], medium="CPU"))
    held.removed(BlockRemoved([b"one"], "GPU"))
    assert held.match(KEYS) == {Tier.HOST: 32}
    assert it.changes[-1] == (KEYS[1], IN_HOST)
    assert held.count(Tier.GPU) == 0
    held.removed(BlockRemoved([b"one"], "CPU"))
    assert len(held) == 0


def test_a_block_that_two_requests_have_computed_is_held_until_both_copies_are_gone() -> None:
    held = (it := rig()).held
    for _ in range(2):
        held.stored(stored(PROMPT[:64], [b"one", b"two"]))
    assert len(it.changes) == 4
    held.removed(BlockRemoved([b"two", b"one"], "GPU"))
    assert held.match(KEYS) == {Tier.GPU: 64}
    held.stored(stored(PROMPT[64:96], [b"three"], parent=b"two"))
    assert held.match(KEYS) == {Tier.GPU: 96}
    held.removed(BlockRemoved([b"three", b"two", b"one"], "GPU"))
    assert (len(held), held.is_complete) == (0, True)
    held.stored(stored(PROMPT[:32], [b"one"]))
    held.clear()
    held.stored(stored(PROMPT[:32], [b"one"]))
    held.removed(BlockRemoved([b"one"], "GPU"))
    assert len(held) == 0


def test_what_cannot_be_placed_is_counted_and_not_believed() -> None:
    held = rig().held
    held.stored(stored(PROMPT[32:64], [b"two"], parent=b"never told"))
    held.stored(BlockStored([b"image"], None, PROMPT[:32], 32, "GPU", [b"\x92\xa5image\x00"]))
    assert (len(held), held.unknown.orphans, held.is_complete) == (0, 2, False)
    held.stored(stored(PROMPT[:32], [b"elsewhere"], medium="EXTERNAL"))
    held.removed(BlockRemoved([b"never told"], "GPU"))
    held.clear()
    assert (len(held), held.unknown.orphans, held.is_complete) == (0, 0, True)


def test_what_a_connector_has_stays_when_vllm_empties_its_own_cache() -> None:
    held = (it := rig()).held
    held.stored(stored(PROMPT[:64], [b"one", b"two"]))
    held.stored(stored(PROMPT[:64], [b"one", b"two"]))
    held.stored(stored(PROMPT[:32], [b"one"], medium="CPU"))
    assert not held.emptied()
    assert held.match(KEYS) == {Tier.HOST: 32}
    assert it.changes[-4:] == [*((key, IN_HOST) for key in KEYS[:2]), *((key, NOWHERE) for key in KEYS[2:4])]
    held.stored(stored(PROMPT[32:64], [b"two"], parent=b"one"))
    assert held.match(KEYS) == {Tier.HOST: 32, Tier.GPU: 32}
    held.removed(BlockRemoved([b"one"], "CPU"))
    held.stored(stored(PROMPT[64:96], [b"lost"], parent=b"never told"))
    assert not held.is_complete
    assert held.emptied()
    assert (len(held), held.is_complete) == (0, True)
    held.stored(stored(PROMPT[64:96], [b"lost"], parent=b"never told", medium="CPU"))
    assert not held.emptied(), "a connector still has what is not known"
    assert not held.is_complete


def test_of_blocks_that_are_told_by_name_alone_the_known_ones_are_entered() -> None:
    """As vLLM's offloading tells of what it has in the CPU's memory."""
    held = rig().held
    held.stored(stored(PROMPT[:32], [b"one"]))
    held.stored(BlockStored([b"unheard", b"one"], None, [], 0, "CPU"))
    held.removed(BlockRemoved([b"one"], "GPU"))
    assert held.match(KEYS) == {Tier.HOST: 32}
    assert held.is_complete


def test_memory_is_bounded() -> None:
    held = HeldBlocks(NAMESPACE, lambda label, residency: None, max_bytes=5 * BYTES_A_BLOCK)
    held.stored(stored(PROMPT[:96], [b"one", b"two", b"three"]))
    assert (len(held), held.unknown.left_out, held.is_complete) == (4, 2, False)


def test_an_empty_cache_is_told_block_by_block() -> None:
    held = (it := rig()).held
    held.stored(stored(PROMPT[:64], [b"one", b"two"]))
    held.clear()
    assert it.changes[4:] == [(key, NOWHERE) for key in KEYS[:4]]
    assert held.match(KEYS) == {}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.sampled_from(["GPU", "CPU"])), max_size=30))
def test_what_is_told_adds_up_to_what_is_held(moves: list[tuple[bool, int, str]]) -> None:
    """Whoever has heard all changes knows the same as who asks now, and every medium counts for itself."""
    told: dict[bytes, Residency] = {}
    held = HeldBlocks(NAMESPACE, lambda label, residency: told.__setitem__(label.key, residency))
    names = [b"one", b"two", b"three"]
    for name, parent, at in zip(names, [None, *names], range(3), strict=False):  # so that all prefixes are known
        held.stored(stored(PROMPT[32 * at : 32 * at + 32], [name], parent=parent, medium="STORAGE"))
    model = {name: Counter({"STORAGE": 1}) for name in names}  # copies: vLLM keeps one for each request that computed it
    for enters, number, medium in moves:
        parent = names[number - 1] if number else None
        if enters:
            held.stored(stored(PROMPT[32 * number : 32 * number + 32], [names[number]], parent=parent, medium=medium))
            model[names[number]][medium] += 1
        else:
            held.removed(BlockRemoved([names[number]], medium))
            model[names[number]][medium] -= model[names[number]][medium] > 0
    assert {key: residency for key, residency in told.items() if residency.tiers} == held.residency()
    for tier, medium in ((Tier.GPU, "GPU"), (Tier.HOST, "CPU"), (Tier.DISK, "STORAGE")):
        assert held.count(tier) == 2 * sum(copies[medium] > 0 for copies in model.values())
