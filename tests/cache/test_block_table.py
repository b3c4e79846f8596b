"""The block table: which slots belong to the tree and which to the sequence, as sequences meet and part."""

import pytest

from pbkv_cluster.cache.factory import make_cache
from pbkv_cluster.cache.sequence.block_table import BlockTable
from pbkv_cluster.cache.sequence.handle import CacheHandle
from pbkv_cluster.cache.sequence.recorded_step import UNRECORDED, RecordedStep
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.cache.tree.node import GPU, Node, new_slots
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, count, pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.reuse.record.segment import Segment
from pbkv_cluster.reuse.record.segment_trie import SegmentTrie
from pbkv_cluster.reuse.record.workflow_record import WorkflowRecord
from tests.cache.policy_harness import SPACE

(ANY,) = UNRECORDED.segments


def node_of(parent: Node, *slots: int) -> Node:
    node = Node(bytes(BLOCK_BYTES * len(slots)), parent, tiers=1)
    node.place(GPU, 0, new_slots(slots))
    return node


def hand_over(table: BlockTable, node: Node, blocks: int) -> None:
    table.hand_over(table.next_range(table.committed + blocks), node)


def bounds(table: BlockTable, computed: int) -> tuple[int, int, Segment]:
    """The next range of the sequence's own."""
    own = table.next_range(computed)
    assert own.node is None
    return own.start, own.stop, own.segment


def owners(table: BlockTable) -> list[tuple[int, int, Node | None]]:
    return [(each.start, each.stop, each.node) for each in table.ranges]


@pytest.fixture
def root() -> Node:
    return Node(b"", None, tiers=1)


@pytest.fixture
def table(root: Node) -> BlockTable:
    return BlockTable(root, UNRECORDED)


def test_an_empty_table_ends_at_the_root(root: Node, table: BlockTable) -> None:
    assert (len(table), table.committed, table.node, list(table.own_slots)) == (0, 0, root, [])


def test_the_tree_owns_what_it_attached_and_the_sequence_what_it_was_given(root: Node, table: BlockTable) -> None:
    upper = node_of(root, 4, 5)
    lower = node_of(upper, 7)
    table.attach(upper, ANY)
    table.attach(lower, ANY)
    table.extend(new_slots((1, 2, 3)))
    assert owners(table) == [(0, 2, upper), (2, 3, lower)]
    assert (table.node, table.committed, len(table)) == (lower, 3, 6)
    assert (list(table.slots), list(table.own_slots)) == ([4, 5, 7, 1, 2, 3], [1, 2, 3])


def test_blocks_are_handed_over_to_a_new_node_or_to_the_last_one(root: Node, table: BlockTable) -> None:
    table.extend(new_slots(range(6)))
    node, other = node_of(root, 0, 1), node_of(root, 4)
    hand_over(table, node, 2)
    hand_over(table, node, 2)  # it has grown
    assert owners(table) == [(0, 4, node)]
    hand_over(table, other, 1)
    assert owners(table) == [(0, 4, node), (4, 5, other)]
    assert list(table.own_slots) == [5]


def test_slots_of_the_tree_replace_the_sequences_own(root: Node, table: BlockTable) -> None:
    table.extend(new_slots((1, 2, 3)))
    child = node_of(root, 8, 9)
    assert list(table.replace(child.slots[GPU])) == [1, 2]
    hand_over(table, child, 2)
    assert (list(table.slots), list(table.own_slots)) == ([8, 9, 3], [3])


def test_a_table_that_ends_frees_only_what_was_its_own(root: Node, table: BlockTable) -> None:
    table.attach(node_of(root, 4, 5), ANY)
    table.extend(new_slots((1, 2)))
    assert list(table.clear()) == [1, 2]
    assert (len(table), table.committed, table.ranges) == (0, 0, [])


def test_the_next_range_ends_with_its_segment(root: Node) -> None:
    segments = SegmentTrie()
    first = segments.add(None, 2, 0, "a", False, b"")
    second = segments.add(first, 4, 0, "a", True, b"")
    table = BlockTable(root, RecordedStep(WorkflowRecord(), 0, [first, second]))
    table.extend(new_slots(range(6)))
    assert bounds(table, 5) == (0, 2, first)
    assert bounds(table, 1) == (0, 1, first)
    hand_over(table, node_of(root, 0, 1), 2)
    assert bounds(table, 5) == (2, 5, second)
    upper = segments.split(second, 3, 1)  # by another step of the workflow
    assert bounds(table, 6) == (2, 3, upper)
    hand_over(table, node_of(root, 2), 1)
    assert bounds(table, 6) == (3, 6, second)


class Sequences:
    """Sequences of one workflow each, whose prompts are paths of blocks and a token."""

    def __init__(self) -> None:
        self.cache = make_cache({Tier.GPU: 64}, CacheConfig(policy="lru"), NullTransferEngine(), ManualClock())

    def begin(self, name: str, *path: int, space: Namespace = SPACE) -> CacheHandle:
        tokens = tokens_of(*path) + pack([0])
        handle = self.cache.open(StepIdentity(space, name, "agent", 0, count(tokens)), tokens)
        assert handle is not None
        assert self.cache.grow(handle, count(tokens))
        return handle

    def free(self) -> int:
        return self.cache.tiers.pools[GPU].free_slots


def tokens_of(*path: int) -> bytes:
    return b"".join(pack([block] * BLOCK_TOKENS) for block in path)


def test_two_that_compute_the_same_end_up_with_one_copy() -> None:
    sequences = Sequences()
    one, two = sequences.begin("one", 1, 2, 3), sequences.begin("two", 1, 2, 4)
    sequences.cache.commit(one, tokens_of(1, 2, 3))
    free = sequences.free()
    sequences.cache.commit(two, tokens_of(1, 2, 4))
    assert sequences.free() == free + 2, "the blocks that both have computed"
    assert one.table.slots[:2] == two.table.slots[:2]
    assert owners(two.table)[0][:2] == (0, 2)
    assert owners(one.table) == [(0, 3, one.table.node)], "the lower part of what was split ends where it did"
    sequences.cache.check_integrity()
    for handle in (one, two):
        sequences.cache.close(handle)
    sequences.cache.check_integrity()


def test_a_sequence_grows_its_own_node_until_another_uses_it() -> None:
    sequences = Sequences()
    one = sequences.begin("one", 1, 2, 3, 4)
    for blocks in (1, 2):
        sequences.cache.commit(one, tokens_of(1, 2, 3, 4), blocks * BLOCK_TOKENS)
    assert len(one.table.ranges) == 1
    sequences.cache.close(sequences.begin("two", 1, 2))
    sequences.cache.commit(one, tokens_of(1, 2, 3, 4))
    assert [each[:2] for each in owners(one.table)] == [(0, 2), (2, 4)]
    sequences.cache.check_integrity()
