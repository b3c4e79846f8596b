"""The popularity of prefixes, against the list of all prompts that were ever read."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.reuse.record.prefix_popularity import OFFSETS, PrefixPopularity, PrefixStat

Path = tuple[int, ...]
"""One number a block."""

prompts = st.lists(st.integers(0, 2), max_size=7).map(tuple)
reads = st.lists(st.tuples(st.integers(0, 5), prompts), max_size=30)


def packed(path: Path) -> bytes:
    return b"".join(pack([block] * BLOCK_TOKENS) for block in path)


def walk(popularity: PrefixPopularity) -> Iterator[tuple[bytes, PrefixStat]]:
    """All entries, each with the tokens down to its end."""
    stack = [(b"", popularity.root)]
    while stack:
        above, entry = stack.pop()
        path = above + entry.tokens
        if entry is not popularity.root:
            yield path, entry
        stack += [(path, child) for child in entry.children.values()]


def check(popularity: PrefixPopularity) -> None:
    entries = dict(walk(popularity))
    assert popularity.blocks == sum(entry.blocks for entry in entries.values())
    assert popularity.blocks <= popularity.capacity
    for entry in entries.values():
        assert entry.blocks * BLOCK_TOKENS * 4 == len(entry.tokens) > 0
        assert entry.children or entry.queued, "the end of a path can never leave"
        assert all(child.parent is entry for child in entry.children.values())
    queued = popularity.droppable()
    assert len(queued) == len(set(queued)), "queued twice"


@settings(max_examples=300, deadline=None)
@given(reads)
def test_entries_are_cut_where_prompts_part_and_count_their_workflows(done: list[tuple[int, Path]]) -> None:
    popularity = PrefixPopularity(1000)
    readers: dict[bytes, set[int]] = {}  # by all that a prompt begins with
    for now, (workflow, prompt) in enumerate(done):
        entries = popularity.read(packed(prompt))
        assert b"".join(entry.tokens for entry in entries) == packed(prompt)
        for depth in range(1, len(prompt) + 1):
            known = readers.setdefault(packed(prompt[:depth]), set())
            for path, entry in walk(popularity):
                if path == packed(prompt[:depth]) and workflow not in known:
                    entry.count(now, 0)
            known.add(workflow)
        check(popularity)
        parted = {
            len(packed(prompt[:depth]))
            for depth in range(1, len(prompt) + 1)
            if depth == len(prompt)
            or any(
                other[:depth] == prompt[:depth] and other[: depth + 1] != prompt[: depth + 1] for _, other in done[: now + 1]
            )
        }
        ends = {len(b"".join(entry.tokens for entry in entries[: at + 1])) for at in range(len(entries))}
        assert ends == parted
        for path, entry in walk(popularity):
            assert entry.workflows == len(readers[path]) == sum(entry.offsets)
            assert entry.last_read == max(
                at for at, (_, other) in enumerate(done[: now + 1], 1) if packed(other).startswith(path)
            )


@settings(max_examples=300, deadline=None)
@given(reads, st.integers(0, 12))
def test_the_ends_that_were_read_longest_ago_leave_first(done: list[tuple[int, Path]], capacity: int) -> None:
    popularity = PrefixPopularity(capacity)
    for _, prompt in done:
        before = {entry for _, entry in walk(popularity)}
        entries = popularity.read(packed(prompt))
        check(popularity)
        gone = (before | set(entries)) - {entry for _, entry in walk(popularity)}
        if gone:
            assert popularity.blocks + max(entry.blocks for entry in gone) > capacity, "it dropped more than it had to"
            leaves = [entry for _, entry in walk(popularity) if not entry.children]
            oldest_left = min((entry.last_read for entry in leaves), default=popularity.clock)
            assert max(entry.last_read for entry in gone) <= oldest_left


def test_what_was_dropped_begins_anew() -> None:
    popularity = PrefixPopularity(3)
    (entry,) = popularity.read(packed((1, 1)))
    entry.count(0, 0)
    popularity.read(packed((2, 2)))
    (again,) = popularity.read(packed((1, 1)))
    assert again is not entry
    assert (again.workflows, entry.workflows) == (0, 1)


def test_a_prompt_beyond_all_capacity_leaves_nothing() -> None:
    popularity = PrefixPopularity(3)
    (entry,) = popularity.read(packed((1,) * 4))
    assert entry.blocks == 4
    assert popularity.blocks == 0


def test_offsets_are_bounded_and_a_cut_leaves_no_steps_between_the_parts() -> None:
    popularity = PrefixPopularity(100)
    (whole,) = popularity.read(packed((1, 2, 3)))
    for offset in (0, 5, OFFSETS, 1000):
        whole.count(2, offset)
    upper, _ = popularity.read(packed((1, 4)))
    assert (upper.offsets[0], upper.offsets[5], upper.offsets[-1]) == (1, 1, 2)
    assert (whole.offsets[0], sum(whole.offsets)) == (4, 4), "whoever came to the upper part came to the lower with it"
    assert (upper.workflows, upper.step_sum) == (whole.workflows, whole.step_sum) == (4, 8)


def test_who_might_have_read_an_entry() -> None:
    popularity = PrefixPopularity(100)
    popularity.workflow_count = 1
    (stem,) = popularity.read(packed((1,)))
    stem.count(0, 0)
    popularity.workflow_count = 4
    assert stem.at_risk(popularity.workflow_count) == 3
    _, end = popularity.read(packed((1, 2)))
    stem.count(0, 0)
    end.count(0, 0)
    assert end.at_risk(popularity.workflow_count) == 1, "of the two that have read the stem one came before"
    stem.count(0, 0)
    assert end.at_risk(popularity.workflow_count) == 2
