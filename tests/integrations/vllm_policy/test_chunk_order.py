"""The order in which chunks leave vLLM's tier, against a plain model of it."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.integrations.vllm_policy.chunk_order import ChunkOrder

from .stand_in import key_of

NAMES = "abcdefgh"


def _order() -> "ChunkOrder[SimpleNamespace]":
    return ChunkOrder(lambda chunk: chunk.ref_cnt == 0)


def _fill(order: "ChunkOrder[SimpleNamespace]", names: str, **busy: int) -> None:
    for name in names:
        order.add(key_of(name), SimpleNamespace(ref_cnt=busy.get(name, 0)))


def _names(victims: "list[tuple[bytes, SimpleNamespace]] | None") -> str | None:
    return None if victims is None else "".join(chr(key[0]) for key, _ in victims)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(NAMES), st.sampled_from((-1, 0, 0, 0, 1))),
        st.tuples(st.sampled_from(("remove", "use", "give_up", "keep")), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("evict"), st.sampled_from(NAMES), st.integers(0, 4)),
    ),
    max_size=60,
)


@given(operations)
def test_it_evicts_what_was_given_up_and_then_by_recency(history: list[tuple[str, str, int]]) -> None:
    order = _order()
    kept, given_up, busy = list[str](), list[str](), dict[str, int]()
    for what, name, number in history:
        key = key_of(name)
        if what == "add" and name not in kept + given_up:
            busy[name] = number
            _fill(order, name, **{name: number})
            kept.append(name)
        elif what == "remove" and name in kept + given_up:
            order.remove(key)
            (kept if name in kept else given_up).remove(name)
        elif what == "use":
            order.use([key])
            for queue in (kept, given_up):
                if name in queue:
                    queue.append(queue.pop(queue.index(name)))
        elif what in ("give_up", "keep"):
            source, target = (kept, given_up) if what == "give_up" else (given_up, kept)
            getattr(order, what)(key[:-4])
            if name in source:
                source.remove(name)
                target.append(name)
        elif what == "evict":
            idle = [each for each in given_up + kept if busy[each] == 0 and each != name]
            wanted = "".join(idle[:number]) if number <= len(idle) else None
            assert _names(order.evict(number, {key})) == wanted
            for each in wanted or "":
                (kept if each in kept else given_up).remove(each)
        assert len(order) == len(kept) + len(given_up)
        assert {each for each in NAMES if order.get(key_of(each)) is not None} == {*kept, *given_up}


def test_nothing_is_evicted_where_not_all_can_be() -> None:
    order = _order()
    _fill(order, "abc", b=1)
    assert order.evict(3, set()) is None
    assert len(order) == 3
    assert _names(order.evict(2, set())) == "ac"


def test_of_one_request_the_end_leaves_first() -> None:
    order = _order()
    _fill(order, "abc")
    order.use(map(key_of, "abc"))
    assert _names(order.evict(3, set())) == "cba"


def test_all_groups_of_a_chunk_are_given_up_together() -> None:
    order = _order()
    _fill(order, "a")
    for name in "bc":
        for group in (0, 1):
            order.add(key_of(name, group), SimpleNamespace(ref_cnt=0))
    order.give_up(key_of("c")[:-4])
    assert [key for key, _ in order.evict(3, set()) or ()] == [key_of("c", 0), key_of("c", 1), key_of("a")]
