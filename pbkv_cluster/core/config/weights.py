"""Weights of tenants, as a setting writes them."""

from math import inf


def parse_weights(text: str) -> dict[str, float]:
    """Weights by tenant; a ValueError says what is wrong."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        tenant, _, number = part.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not tenant or not 0 < weight < inf:
            raise ValueError(f"must be TENANT=WEIGHT,TENANT=WEIGHT with weights above 0, got {part!r}")
        if tenant in found:
            raise ValueError(f"names {tenant!r} twice")
        found[tenant] = weight
    return found
