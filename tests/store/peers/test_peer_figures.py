"""What operators are told of blocks between nodes: what was read and served, and what was refused."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.store.arena.layout import RegionLayout
from pbkv_cluster.store.figures import HostStoreFigures, PeerSourceFigures
from pbkv_cluster.store.peers.server import Limits
from pbkv_cluster.store.peers.tcp import TcpConnection
from pbkv_cluster.store.peers.wire import REQUEST
from tests.polling import wait_for
from tests.store.arena.blocks import label
from tests.store.peers.node import reading, room, serving, stranger, wanted


async def scraped(of: HostStoreFigures | PeerSourceFigures) -> dict[str, float]:
    """The series about blocks between nodes, by name and the value of their label."""
    figures = Figures()
    await of.put(figures)
    samples = [each for family in text_string_to_metric_families(figures.text().decode()) for each in family.samples]
    found = {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}
    prefix = "pbkv_peer_"
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


async def test_what_is_read_served_and_refused_is_told() -> None:
    layout = RegionLayout(4, 8 << 20)  # far more than sockets hold
    limits = Limits(connections=2, bytes=layout.payload_bytes)
    with serving(layout, limits=limits) as node, reading({"n": node.peer}) as source:
        server, reader = HostStoreFigures(node.arena, node.server), PeerSourceFigures(source)
        nothing = {"served_blocks_total served", "served_blocks_total absent", "refusals_total connections"}
        assert await scraped(server) == dict.fromkeys(nothing | {"refusals_total requests"}, 0)
        source.read(wanted([1]), room(1, layout.payload_bytes))
        source.read(wanted([3, 9], slots=[3, 0]), room(2, layout.payload_bytes))
        with stranger(node.peer) as slow:
            slow.send(REQUEST.pack(1, 1, layout.payload_bytes) + b"w" + label(0).key + bytes(8))
            wait_for(lambda: node.server.bytes_in_flight > 0)
            with pytest.raises(Unavailable, match="serves as many blocks as it can"):
                source.read(wanted([1]), room(1, layout.payload_bytes))
            wait_for(lambda: node.server.connections == 1, why=lambda: "the reader that was refused is still counted")
            with stranger(node.peer), pytest.raises(Unavailable, match="too many connections"):
                TcpConnection(node.peer, 30.0)
        assert await scraped(server) == {
            "served_blocks_total served": 2,
            "served_blocks_total absent": 1,
            "refusals_total connections": 1,
            "refusals_total requests": 1,
        }
        assert await scraped(reader) == {
            "read_blocks_total read": 2,
            "read_blocks_total absent": 1,
            "read_blocks_total overwritten": 0,
            "read_blocks_total damaged": 0,
            "failed_requests_total": 1,
        }
