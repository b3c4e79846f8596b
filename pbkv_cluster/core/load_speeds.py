"""How fast a worker has tokens on its GPU: by computing them, or by loading their blocks from another kind of memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pbkv_cluster.core.usage import Tier


class LoadSpeed(NamedTuple):
    """Of loads from one kind of memory to the GPU."""

    token_s: float  # seconds that a token takes
    queue_s: float  # seconds that the loads before it will take


@dataclass(frozen=True, slots=True)
class LoadSpeeds:
    """What a worker has measured, at one moment."""

    prefill_token_s: float  # seconds that a token takes to compute
    loads: Mapping[Tier, LoadSpeed]  # from the kinds of memory that something has been loaded from
