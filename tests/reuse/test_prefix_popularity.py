"""The catalog against the list of all prompts that were ever read."""

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


def walk(catalog: PrefixPopularity) -> Iterator[tuple[bytes, PrefixStat]]:
    """All entries, each with the tokens down to its end."""
    stack = [(b"", catalog.root)]
    while stack:
        above, entry = stack.pop()
        path = above + entry.tokens
        if entry is not catalog.root:
            yield path, entry
        stack += [(path, child) for child in entry.children.values()]


def check(catalog: PrefixPopularity) -> None:
    entries = dict(walk(catalog))
    assert catalog.blocks == sum(entry.blocks for entry in entries.values())
    assert catalog.blocks <= catalog.capacity
    for entry in entries.values():
        assert entry.blocks * BLOCK_TOKENS * 4 == len(entry.tokens) > 0
        assert entry.children or entry.queued, "the end of a path can never leave"
        assert all(child.parent is entry for child in entry.children.values())
    queued = [entry for _, _, entry in catalog._leaves]
    assert len(queued) == len(set(queued)), "queued twice"


@settings(max_examples=300, deadline=None)
@given(reads)
def test_entries_are_cut_where_prompts_part_and_count_their_workflows(done: list[tuple[int, Path]]) -> None:
    catalog = PrefixPopularity(1000)
    readers: dict[bytes, set[int]] = {}  # by all that a prompt begins with
    for now, (workflow, prompt) in enumerate(done):
        entries = catalog.read(packed(prompt))
        assert b"".join(entry.tokens for entry in entries) == packed(prompt)
        for depth in range(1, len(prompt) + 1):
            known = readers.setdefault(packed(prompt[:depth]), set())
            for path, entry in walk(catalog):
                if path == packed(prompt[:depth]) and workflow not in known:
                    entry.count(now, 0)
            known.add(workflow)
        check(catalog)
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
        for path, entry in walk(catalog):
            assert entry.workflows == len(readers[path]) == sum(entry.first)
            assert entry.last == max(at for at, (_, other) in enumerate(done[: now + 1], 1) if packed(other).startswith(path))


@settings(max_examples=300, deadline=None)
@given(reads, st.integers(0, 12))
def test_the_ends_that_were_read_longest_ago_leave_first(done: list[tuple[int, Path]], capacity: int) -> None:
    catalog = PrefixPopularity(capacity)
    for _, prompt in done:
        before = {entry for _, entry in walk(catalog)}
        entries = catalog.read(packed(prompt))
        check(catalog)
        gone = (before | set(entries)) - {entry for _, entry in walk(catalog)}
        if gone:
            assert catalog.blocks + max(entry.blocks for entry in gone) > capacity, "it dropped more than it had to"
            leaves = [entry for _, entry in walk(catalog) if not entry.children]
            assert max(entry.last for entry in gone) <= min((entry.last for entry in leaves), default=catalog._clock)


def test_what_was_dropped_begins_anew() -> None:
    catalog = PrefixPopularity(3)
    (entry,) = catalog.read(packed((1, 1)))
    entry.count(0, 0)
    catalog.read(packed((2, 2)))
    (again,) = catalog.read(packed((1, 1)))
    assert again is not entry
    assert (again.workflows, entry.workflows) == (0, 1)


def test_a_prompt_beyond_all_capacity_leaves_nothing() -> None:
    catalog = PrefixPopularity(3)
    (entry,) = catalog.read(packed((1,) * 4))
    assert entry.blocks == 4
    assert catalog.blocks == 0


def test_offsets_are_bounded_and_a_cut_leaves_no_steps_between_the_parts() -> None:
    catalog = PrefixPopularity(100)
    (whole,) = catalog.read(packed((1, 2, 3)))
    for offset in (0, 5, OFFSETS, 1000):
        whole.count(2, offset)
    upper, _ = catalog.read(packed((1, 4)))
    assert (upper.first[0], upper.first[5], upper.first[-1]) == (1, 1, 2)
    assert (whole.first[0], sum(whole.first)) == (4, 4), "whoever came to the upper part came to the lower with it"
    assert (upper.workflows, upper.step_sum) == (whole.workflows, whole.step_sum) == (4, 8)


def test_who_might_have_read_an_entry() -> None:
    catalog = PrefixPopularity(100)
    catalog.arrivals = 1
    (stem,) = catalog.read(packed((1,)))
    stem.count(0, 0)
    catalog.arrivals = 4
    assert stem.exposed(catalog.arrivals) == 3
    _, end = catalog.read(packed((1, 2)))
    stem.count(0, 0)
    end.count(0, 0)
    assert end.exposed(catalog.arrivals) == 1, "of the two that have read the stem one came before"
    stem.count(0, 0)
    assert end.exposed(catalog.arrivals) == 2
