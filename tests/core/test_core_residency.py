"""Residencies as values and as numbers."""

from pbkv_cluster.core.locations.residency import NOWHERE, PACKED_BYTES, Residency, unpack
from pbkv_cluster.core.usage import Tier


def test_residencies_are_packed_and_unpacked() -> None:
    both = Residency(frozenset({Tier.GPU, Tier.HOST}), 1 << 30)
    for each in (NOWHERE, Residency(frozenset({Tier.GPU})), both, both._replace(sheltered=True)):
        assert unpack(each.pack()) == each
        assert each.pack() < 1 << 8 * PACKED_BYTES
