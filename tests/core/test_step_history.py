"""The steps of a workflow as its workers are told of them: what each has not heard, how much at a time, and what it takes."""

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.tokens import BLOCK_BYTES, pack
from pbkv_cluster.core.workflow.remote_steps import RemoteStepEnded, RemoteStepEvent, StepHistory
from pbkv_cluster.rpc.convert import remote_steps_from_wire, remote_steps_to_wire

symbols = st.lists(st.integers(0, 2), max_size=6)


def blocks(path: list[int]) -> bytes:
    return b"".join(bytes([symbol]) * BLOCK_BYTES for symbol in path)


def tokens(event: RemoteStepEvent) -> bytes:
    return event.output if isinstance(event, RemoteStepEnded) else event.tokens


def played(steps: list[tuple[str, list[int], list[int]]]) -> StepHistory:
    history = StepHistory(first_index=7)
    for number, (worker, prompt, output) in enumerate(steps):
        history.began(number, "a", blocks(prompt), worker, float(number), sent=blocks(output)[:4])
        history.ended(number, blocks(output) + bytes(4), number + 0.5)
    return history


steps = st.lists(st.tuples(st.sampled_from(["one", "two"]), symbols, symbols), max_size=8)


@given(steps, st.integers(0, 3000))
def test_parts_of_what_is_untold_are_bounded_and_make_up_the_whole(
    steps: list[tuple[str, list[int], list[int]]], limit: int
) -> None:
    history = played(steps)
    whole, parts = history.untold("two"), list[RemoteStepEvent]()
    while part := history.untold("two", limit):
        size = sum(message.ByteSize() for message in remote_steps_to_wire(part, 9.0))
        assert len(part) == 1 or size <= limit
        parts += part
        history.told("two", part)
    assert parts == whole
    assert history.size_bytes >= sum(len(tokens(event)) for event in whole)
    assert remote_steps_from_wire(remote_steps_to_wire(whole, 9.0), 9.0) == whole


def test_what_repeats_takes_room_too() -> None:
    once, often = played([("one", [0, 1], [2, 0])]), played([("one", [0, 1], [2, 0])] * 100)
    assert often.size_bytes - once.size_bytes >= 99 * 2 * BLOCK_BYTES, "each end keeps its output"


def test_an_event_tells_how_long_the_sequence_is() -> None:
    history = StepHistory()
    history.began(0, "a", pack(range(20)), "one", 0.0, sent=pack(range(3)))
    history.ended(0, pack(range(5)), 1.0)
    assert [event.length for event in history.untold("two")] == [23, 24], "the last token has no KV"
