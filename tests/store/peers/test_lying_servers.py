"""Servers of blocks that lie to their readers, or keep them waiting."""

import threading
from collections.abc import Callable

import pytest

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.arena.layout import GENERATION_BYTES, SLOT_BYTES, SlotHeader
from pbkv_cluster.store.arena.slots import ReadResult, SlotReader
from tests.store.arena.blocks import label
from tests.store.peers.node import LAYOUT, reading, room, serving, wanted

Lie = Callable[[bytes, bytes], tuple[bytes, bytes]]


def _other_bytes(header: bytes, block: bytes) -> tuple[bytes, bytes]:
    return header, b"\7" * len(block)


def _other_block(header: bytes, block: bytes) -> tuple[bytes, bytes]:
    found = SlotHeader.unpack(header[GENERATION_BYTES:])
    assert found is not None
    return (header[:GENERATION_BYTES] + found._replace(label=label(5)).pack()).ljust(SLOT_BYTES, b"\0"), block


def _no_header(header: bytes, block: bytes) -> tuple[bytes, bytes]:
    return b"\1" * SLOT_BYTES, block


@pytest.mark.parametrize("lie", [_other_bytes, _other_block, _no_header])
def test_a_server_that_lies_is_not_believed(lie: Lie, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as node:
        honest_header, honest_payload = SlotReader.packed_header, SlotReader.payload

        def both(reader: SlotReader, slot: int) -> tuple[bytes, bytes]:
            header = honest_header(reader, slot, label(slot).key)
            assert header is not None
            return lie(header, bytes(honest_payload(reader, slot)))

        monkeypatch.setattr(SlotReader, "packed_header", lambda reader, slot, key: both(reader, slot)[0])
        monkeypatch.setattr(SlotReader, "payload", lambda reader, slot: memoryview(both(reader, slot)[1]))
        with reading({"n": node.peer}) as source:
            results = source.read(wanted([0, 1]), room(2))
            assert set(results) <= {ReadResult.DAMAGED, ReadResult.OVERWRITTEN}
            assert source.counts.total() == 2


def test_an_answer_that_is_none_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as node, reading({"n": node.peer}) as source:
        monkeypatch.setattr("pbkv_cluster.store.peers.server.OK", 77)
        with pytest.raises(Unavailable, match="answers what is no answer"):
            source.read(wanted([1]), room(1))


def test_a_server_that_sends_each_block_just_in_time_is_not_waited_for_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    never, honest = threading.Event(), SlotReader.payload

    def late(reader: SlotReader, slot: int) -> memoryview:
        never.wait(0.4)
        return honest(reader, slot)

    monkeypatch.setattr(SlotReader, "payload", late)
    with serving() as node, reading({"n": node.peer}, timeout_s=0.6) as source:
        with pytest.raises(Unavailable, match="does not send blocks within"):
            source.read(wanted(range(LAYOUT.slots)), room(LAYOUT.slots))
        never.set()
