"""Configuration of the cache."""

from typing import Literal

from pydantic import Field

from pbkv_cluster.core.config.section import Section


class CacheConfig(Section):
    """Which blocks the cache keeps."""

    policy: str = Field("pbkv", min_length=1, description="reuse policy of all tiers, by name or package.module:Class")
    host_policy: str = Field("", description="another reuse policy for the host tier; empty: the same")
    prefetch: Literal["none", "conservative", "queue"] = Field(
        "none",
        description="load blocks to the GPU ahead of their use. conservative: into free space and that of ended workflows; "
        "queue: those of queued steps first, and in place of blocks worth less than half, while this is seen to be useful",
    )
    demote_early: bool = Field(
        False,
        description="while the engine only decodes, copy blocks that are next to leave the GPU to host memory, so that steps do not wait for it",
    )
    stage: bool = Field(
        False,
        description="bring blocks that are likely to be used soon from the disk and from other nodes to host memory, while nothing else "
        "comes from there and this is seen to be useful",
    )
    write_through: bool = Field(
        False, description="copy blocks to host memory, and to the disk, when they are complete, not when evicted"
    )
    gamma: float = Field(0.7, gt=0, le=1, description="discount of a forecast's reuse score for each further step")
    forecast_half_life_s: float = Field(
        60.0, gt=0, description="policy `pbkv-paper`: seconds after which a forecast counts half"
    )
    hit_overhead: float = Field(
        2.0,
        gt=0,
        description="policy `pbkv`: seconds added to the wait for a hit, if steps take half a minute; less favours blocks that may be used soon",
    )
    shared_prior: float = Field(
        0.002,
        gt=0,
        le=1,
        description="policy `pbkv`: prior probability that a new workflow uses a given block of an ended one",
    )
    lease_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of a worker's GPU blocks that one tenant may have leased, so that they leave the cache last; 0: none",
    )
    lease_max_s: float = Field(3600.0, gt=0, description="most seconds for which a client may lease blocks")
    decision_log_bytes: int = Field(
        4 << 20, ge=0, description="memory for the last decisions about blocks, which `pbkv explain` shows; 0: none are kept"
    )
    guard: bool = Field(True, description="evict by LRU while the policy would cost more; has no effect with policy `lru`")
    guard_confidence: float = Field(
        2.5,
        gt=0,
        description="standard deviations by which policy and LRU must differ before the guard changes from one to the other",
    )
    guard_steps: int = Field(
        1000, ge=10, description="number of steps after which a step's weight in the guard has fallen to 1/e"
    )
    workflow_lease_s: float = Field(
        7200.0, gt=0, description="seconds of silence after which a worker lets go of a workflow whose end it was not told"
    )
    lfu_half_life_s: float = Field(600.0, gt=0, description="policy `lfu`: seconds after which a use counts half")
    continuum_benefit_s: float = Field(
        30.0,
        gt=0,
        description="policy `continuum`: seconds of keeping blocks that a hit on them is worth",
    )
