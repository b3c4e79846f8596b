"""What an engine holds, by tokens: whatever hashes it uses, and in whatever order blocks come and go."""

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.tokens import pack
from pbkv_cluster.store.kv_events.engine_blocks import BYTES_A_BLOCK, EngineBlocks, Held
from pbkv_cluster.store.kv_events.messages import BlockRemoved, BlockStored, extra_of

ROOM = 1000 * BYTES_A_BLOCK
Path = tuple[int, ...]  # a block is one token here, and this is its prefix


def a_hash(path: Path) -> bytes:
    return repr(path).encode()


def stored(path: Path, tier: str = "GPU", blocks: int = 1) -> BlockStored:
    """The last blocks of a path."""
    before = path[:-blocks]
    keys = [a_hash(path[:end]) for end in range(len(before) + 1, len(path) + 1)]
    return BlockStored(keys, a_hash(before) if before else None, list(path[len(before) :]), 1, tier)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "remove", "empty"]),
        st.sampled_from(["GPU", "CPU"]),
        st.lists(st.integers(0, 2), max_size=4),
    ),
    max_size=60,
)


@given(OPERATIONS, st.lists(st.integers(0, 2), max_size=5))
def test_a_prompt_matches_what_a_cache_of_prefixes_holds(
    operations: list[tuple[str, str, list[int]]], prompt: list[int]
) -> None:
    """The model: a set of paths for each tier; one is stored after its beginnings, and removed when none goes on from it."""
    blocks, truth = EngineBlocks(ROOM), {"GPU": set[Path](), "CPU": set[Path]()}
    for kind, tier, path in ((kind, tier, tuple(path)) for kind, tier, path in operations):
        held = truth[tier]
        if kind == "store":
            for end in range(1, len(path) + 1):
                if path[:end] not in held:
                    held.add(path[:end])
                    blocks.stored(stored(path[:end], tier))
        elif kind == "empty":
            truth["GPU"].clear()
            assert blocks.emptied() is (not truth["CPU"])
        elif path in held and not any(other[: len(path)] == path and other != path for other in held):
            held.discard(path)
            blocks.removed(BlockRemoved([a_hash(path)], tier))
    everywhere = truth["GPU"] | truth["CPU"]
    assert len(blocks) == len(everywhere)
    assert blocks.is_complete
    runs = [tuple(prompt[:end]) for end in range(1, len(prompt) + 1)]
    on_gpu, in_all = sum(run in truth["GPU"] for run in runs), sum(run in everywhere for run in runs)
    assert blocks.match(pack(prompt)) == Held(on_gpu, in_all - on_gpu)


def test_blocks_that_other_things_than_tokens_distinguish_match_only_with_these() -> None:
    blocks, salt = EngineBlocks(ROOM), extra_of(["tenant"])
    blocks.stored(BlockStored([b"1", b"2"], None, [1, 1, 2, 2], 2, "GPU", [salt, b""]))
    assert blocks.match(pack([1, 1, 2, 2, 3]), salt) == Held(4, 0)
    assert blocks.match(pack([1, 1, 2, 2, 3])) == Held(0, 0)


def test_what_follows_a_missed_event_is_not_believed_and_counted() -> None:
    blocks = EngineBlocks(ROOM)
    blocks.stored(BlockStored([b"2", b"3"], b"1", [2, 3], 1, "GPU"))
    assert (len(blocks), blocks.unknown.orphans, blocks.is_complete) == (0, 2, False)
    blocks.clear()
    assert blocks.is_complete


def test_a_block_told_of_again_in_another_tier_needs_no_tokens() -> None:
    blocks = EngineBlocks(ROOM)
    blocks.stored(stored((1, 2), blocks=2))
    blocks.stored(BlockStored([a_hash((1,)), a_hash((1, 2))], None, [], 1, "CPU"))
    blocks.removed(BlockRemoved([a_hash((1, 2)), a_hash((1,))], "GPU"))
    assert blocks.match(pack([1, 2])) == Held(0, 2)
    assert blocks.is_complete


def test_a_block_that_two_requests_have_computed_is_held_until_both_copies_are_gone() -> None:
    blocks = EngineBlocks(ROOM)
    for _ in range(2):
        blocks.stored(stored((1, 2), blocks=2))
    blocks.removed(BlockRemoved([a_hash((1, 2)), a_hash((1,))], "GPU"))
    assert blocks.match(pack([1, 2])) == Held(2, 0)
    blocks.removed(BlockRemoved([a_hash((1, 2)), a_hash((1,))], "GPU"))
    assert (len(blocks), blocks.match(pack([1, 2]))) == (0, Held(0, 0))
    blocks.stored(stored((1, 2), blocks=2))
    blocks.clear()
    blocks.stored(stored((1, 2), blocks=2))
    blocks.removed(BlockRemoved([a_hash((1, 2)), a_hash((1,))], "GPU"))
    assert len(blocks) == 0


def test_of_blocks_that_are_told_by_name_alone_the_known_ones_are_entered() -> None:
    blocks = EngineBlocks(ROOM)
    blocks.stored(stored((1, 2), blocks=2))
    blocks.stored(BlockStored([b"unheard", a_hash((1,)), a_hash((1, 2))], None, [], 0, "CPU"))
    blocks.removed(BlockRemoved([a_hash((1, 2)), a_hash((1,))], "GPU"))
    assert blocks.match(pack([1, 2])) == Held(0, 2)
    assert blocks.is_complete


def test_what_a_connector_has_stays_when_vllm_empties_its_own_cache() -> None:
    told: list[float] = []
    blocks = EngineBlocks(ROOM, told.append)
    blocks.stored(stored((1, 2, 3), blocks=3))
    blocks.stored(stored((1, 2), "CPU", blocks=2))
    assert not blocks.emptied()
    assert blocks.match(pack([1, 2, 3])) == Held(0, 2)
    blocks.removed(BlockRemoved([a_hash((1, 2)), a_hash((1,))], "CPU"))
    assert blocks.emptied()
    assert told == [1 / 3, 1.0, 1.0]


def test_sglang_empties_its_host_memory_too() -> None:
    blocks = EngineBlocks(ROOM)
    blocks.stored(stored((1, 2), blocks=2))
    blocks.stored(stored((1, 2), "CPU_PINNED", blocks=2))
    blocks.stored(stored((1,), "DISK"))
    assert not blocks.emptied()
    assert blocks.match(pack([1, 2])) == Held(0, 1)
    blocks.removed(BlockRemoved([a_hash((1,))], "DISK"))
    blocks.stored(stored((1, 2), "CPU_PINNED", blocks=2))
    assert blocks.emptied()


def test_an_engine_is_not_called_empty_while_a_slower_tier_has_what_is_not_known() -> None:
    blocks = EngineBlocks(ROOM)
    blocks.stored(BlockStored([b"2"], b"1", [2], 1, "GPU"))
    assert blocks.emptied()
    assert blocks.is_complete
    blocks.stored(BlockStored([b"2"], b"1", [2], 1, "CPU"))
    assert not blocks.emptied()
    assert not blocks.is_complete


def test_memory_is_bounded_and_those_who_ask_are_told_what_is_dropped() -> None:
    told: list[float] = []
    blocks = EngineBlocks(3 * BYTES_A_BLOCK, told.append)
    blocks.stored(stored((1, 2, 3, 4, 5), blocks=5))
    assert (len(blocks), blocks.unknown.left_out, blocks.is_complete) == (3, 2, False)
    assert blocks.match(pack([1, 2, 3, 4, 5])) == Held(3, 0)
    blocks.removed(BlockRemoved([a_hash((1, 2, 3)), b"unheard"], "GPU"))
    blocks.clear()
    assert told == [1 / 3, 1.0]
