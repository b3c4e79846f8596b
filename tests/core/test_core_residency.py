"""Residencies as values and as numbers."""

from pbkv_cluster.core.locations.residency import NOWHERE, Residency, unpack
from pbkv_cluster.core.usage import Tier


def test_residencies_are_packed_and_unpacked() -> None:
    for each in (NOWHERE, Residency(frozenset({Tier.GPU})), Residency(frozenset({Tier.GPU, Tier.HOST}), 1 << 30)):
        assert unpack(each.pack()) == each
    assert Residency(frozenset({Tier.HOST}), 1 << 30).pack() < 1 << 40, "five bytes"
