from pbkv_cluster.rpc.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CacheGrouping(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_GROUPING_UNSPECIFIED: _ClassVar[CacheGrouping]
    CACHE_GROUPING_RUN: _ClassVar[CacheGrouping]
    CACHE_GROUPING_WORKFLOW: _ClassVar[CacheGrouping]
    CACHE_GROUPING_AGENT: _ClassVar[CacheGrouping]

class CacheOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_ORDER_UNSPECIFIED: _ClassVar[CacheOrder]
    CACHE_ORDER_LARGEST: _ClassVar[CacheOrder]
    CACHE_ORDER_HOTTEST: _ClassVar[CacheOrder]
CACHE_GROUPING_UNSPECIFIED: CacheGrouping
CACHE_GROUPING_RUN: CacheGrouping
CACHE_GROUPING_WORKFLOW: CacheGrouping
CACHE_GROUPING_AGENT: CacheGrouping
CACHE_ORDER_UNSPECIFIED: CacheOrder
CACHE_ORDER_LARGEST: CacheOrder
CACHE_ORDER_HOTTEST: CacheOrder

class TierStat(_message.Message):
    __slots__ = ("tier", "capacity_blocks", "used_blocks", "locked_blocks", "block_bytes", "ready_blocks")
    TIER_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LOCKED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    READY_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    tier: _types_pb2.Tier
    capacity_blocks: int
    used_blocks: int
    locked_blocks: int
    block_bytes: int
    ready_blocks: int
    def __init__(self, tier: _Optional[_Union[_types_pb2.Tier, str]] = ..., capacity_blocks: _Optional[int] = ..., used_blocks: _Optional[int] = ..., locked_blocks: _Optional[int] = ..., block_bytes: _Optional[int] = ..., ready_blocks: _Optional[int] = ...) -> None: ...

class StoreStat(_message.Message):
    __slots__ = ("tiers", "policy", "decisions", "guard", "prefetch", "leases")
    class DecisionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TIERS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    GUARD_FIELD_NUMBER: _ClassVar[int]
    PREFETCH_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    tiers: _containers.RepeatedCompositeFieldContainer[TierStat]
    policy: str
    decisions: _containers.ScalarMap[str, int]
    guard: GuardStat
    prefetch: PrefetchStat
    leases: LeaseStat
    def __init__(self, tiers: _Optional[_Iterable[_Union[TierStat, _Mapping]]] = ..., policy: _Optional[str] = ..., decisions: _Optional[_Mapping[str, int]] = ..., guard: _Optional[_Union[GuardStat, _Mapping]] = ..., prefetch: _Optional[_Union[PrefetchStat, _Mapping]] = ..., leases: _Optional[_Union[LeaseStat, _Mapping]] = ...) -> None: ...

class LeaseStat(_message.Message):
    __slots__ = ("leases", "leased_tokens", "limit_tokens")
    LEASES_FIELD_NUMBER: _ClassVar[int]
    LEASED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    leases: int
    leased_tokens: int
    limit_tokens: int
    def __init__(self, leases: _Optional[int] = ..., leased_tokens: _Optional[int] = ..., limit_tokens: _Optional[int] = ...) -> None: ...

class PrefetchStat(_message.Message):
    __slots__ = ("loaded_tokens", "used_tokens", "wasted_tokens", "cancelled_tokens", "loaded_bytes")
    LOADED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WASTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    loaded_tokens: int
    used_tokens: int
    wasted_tokens: int
    cancelled_tokens: int
    loaded_bytes: int
    def __init__(self, loaded_tokens: _Optional[int] = ..., used_tokens: _Optional[int] = ..., wasted_tokens: _Optional[int] = ..., cancelled_tokens: _Optional[int] = ..., loaded_bytes: _Optional[int] = ...) -> None: ...

class CacheHits(_message.Message):
    __slots__ = ("gpu_tokens", "tokens")
    GPU_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    gpu_tokens: int
    tokens: int
    def __init__(self, gpu_tokens: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class GuardStat(_message.Message):
    __slots__ = ("lru_active", "switches", "prompt_tokens", "hits", "lru_hits", "policy_hits", "evicted_by_lru", "evicted_by_policy", "saved_s")
    LRU_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    LRU_HITS_FIELD_NUMBER: _ClassVar[int]
    POLICY_HITS_FIELD_NUMBER: _ClassVar[int]
    EVICTED_BY_LRU_FIELD_NUMBER: _ClassVar[int]
    EVICTED_BY_POLICY_FIELD_NUMBER: _ClassVar[int]
    SAVED_S_FIELD_NUMBER: _ClassVar[int]
    lru_active: bool
    switches: int
    prompt_tokens: int
    hits: CacheHits
    lru_hits: CacheHits
    policy_hits: CacheHits
    evicted_by_lru: int
    evicted_by_policy: int
    saved_s: float
    def __init__(self, lru_active: _Optional[bool] = ..., switches: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., hits: _Optional[_Union[CacheHits, _Mapping]] = ..., lru_hits: _Optional[_Union[CacheHits, _Mapping]] = ..., policy_hits: _Optional[_Union[CacheHits, _Mapping]] = ..., evicted_by_lru: _Optional[int] = ..., evicted_by_policy: _Optional[int] = ..., saved_s: _Optional[float] = ...) -> None: ...

class StatRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatResponse(_message.Message):
    __slots__ = ("store",)
    STORE_FIELD_NUMBER: _ClassVar[int]
    store: StoreStat
    def __init__(self, store: _Optional[_Union[StoreStat, _Mapping]] = ...) -> None: ...

class PrefetchRequest(_message.Message):
    __slots__ = ("prompt", "tenant", "workflow_id", "agent_id", "within_s")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    WITHIN_S_FIELD_NUMBER: _ClassVar[int]
    prompt: _types_pb2.Prompt
    tenant: str
    workflow_id: str
    agent_id: str
    within_s: float
    def __init__(self, prompt: _Optional[_Union[_types_pb2.Prompt, _Mapping]] = ..., tenant: _Optional[str] = ..., workflow_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., within_s: _Optional[float] = ...) -> None: ...

class PrefetchResponse(_message.Message):
    __slots__ = ("loaded_tokens", "resident_tokens", "tokens", "tiers", "leased_tokens", "lease_id", "tenant", "staged_tokens")
    LOADED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    LEASED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    STAGED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    loaded_tokens: int
    resident_tokens: int
    tokens: int
    tiers: _containers.RepeatedCompositeFieldContainer[_types_pb2.TierTokens]
    leased_tokens: int
    lease_id: str
    tenant: str
    staged_tokens: int
    def __init__(self, loaded_tokens: _Optional[int] = ..., resident_tokens: _Optional[int] = ..., tokens: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[_types_pb2.TierTokens, _Mapping]]] = ..., leased_tokens: _Optional[int] = ..., lease_id: _Optional[str] = ..., tenant: _Optional[str] = ..., staged_tokens: _Optional[int] = ...) -> None: ...

class LeaseBlocksRequest(_message.Message):
    __slots__ = ("lease_id", "prompt", "tenant", "workflow_id", "lease_s")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    prompt: _types_pb2.Prompt
    tenant: str
    workflow_id: str
    lease_s: float
    def __init__(self, lease_id: _Optional[str] = ..., prompt: _Optional[_Union[_types_pb2.Prompt, _Mapping]] = ..., tenant: _Optional[str] = ..., workflow_id: _Optional[str] = ..., lease_s: _Optional[float] = ...) -> None: ...

class LeaseBlocksResponse(_message.Message):
    __slots__ = ("cached_tokens", "leased_tokens", "tenant")
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEASED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    cached_tokens: int
    leased_tokens: int
    tenant: str
    def __init__(self, cached_tokens: _Optional[int] = ..., leased_tokens: _Optional[int] = ..., tenant: _Optional[str] = ...) -> None: ...

class ReleaseBlocksRequest(_message.Message):
    __slots__ = ("lease_id", "tenant")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    tenant: str
    def __init__(self, lease_id: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ReleaseBlocksResponse(_message.Message):
    __slots__ = ("released_tokens",)
    RELEASED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    released_tokens: int
    def __init__(self, released_tokens: _Optional[int] = ...) -> None: ...

class LeaseArenaRequest(_message.Message):
    __slots__ = ("worker_id", "bytes", "may_be_less")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MAY_BE_LESS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    bytes: int
    may_be_less: bool
    def __init__(self, worker_id: _Optional[str] = ..., bytes: _Optional[int] = ..., may_be_less: _Optional[bool] = ...) -> None: ...

class LeaseArenaResponse(_message.Message):
    __slots__ = ("path", "offset", "bytes", "lease_s")
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    path: str
    offset: int
    bytes: int
    lease_s: float
    def __init__(self, path: _Optional[str] = ..., offset: _Optional[int] = ..., bytes: _Optional[int] = ..., lease_s: _Optional[float] = ...) -> None: ...

class ClearRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClearResponse(_message.Message):
    __slots__ = ("dropped_blocks",)
    DROPPED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    dropped_blocks: int
    def __init__(self, dropped_blocks: _Optional[int] = ...) -> None: ...

class ListCacheRequest(_message.Message):
    __slots__ = ("by", "order", "limit", "workflow_id", "agent_id", "last_decisions")
    BY_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_DECISIONS_FIELD_NUMBER: _ClassVar[int]
    by: CacheGrouping
    order: CacheOrder
    limit: int
    workflow_id: str
    agent_id: str
    last_decisions: bool
    def __init__(self, by: _Optional[_Union[CacheGrouping, str]] = ..., order: _Optional[_Union[CacheOrder, str]] = ..., limit: _Optional[int] = ..., workflow_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., last_decisions: _Optional[bool] = ...) -> None: ...

class CachedBlocks(_message.Message):
    __slots__ = ("name", "worker_id", "start_tokens", "tokens", "tiers", "shared_tokens", "workflows", "agents", "in_use", "idle_s", "recent_uses", "last_decision", "leased_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    START_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    SHARED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    RECENT_USES_FIELD_NUMBER: _ClassVar[int]
    LAST_DECISION_FIELD_NUMBER: _ClassVar[int]
    LEASED_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    worker_id: str
    start_tokens: int
    tokens: int
    tiers: _containers.RepeatedCompositeFieldContainer[_types_pb2.TierTokens]
    shared_tokens: int
    workflows: _containers.RepeatedScalarFieldContainer[str]
    agents: _containers.RepeatedScalarFieldContainer[str]
    in_use: bool
    idle_s: float
    recent_uses: float
    last_decision: CacheDecision
    leased_s: float
    def __init__(self, name: _Optional[str] = ..., worker_id: _Optional[str] = ..., start_tokens: _Optional[int] = ..., tokens: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[_types_pb2.TierTokens, _Mapping]]] = ..., shared_tokens: _Optional[int] = ..., workflows: _Optional[_Iterable[str]] = ..., agents: _Optional[_Iterable[str]] = ..., in_use: _Optional[bool] = ..., idle_s: _Optional[float] = ..., recent_uses: _Optional[float] = ..., last_decision: _Optional[_Union[CacheDecision, _Mapping]] = ..., leased_s: _Optional[float] = ...) -> None: ...

class CacheDecision(_message.Message):
    __slots__ = ("worker_id", "reason", "age_s", "blocks", "key", "value", "by_lru", "workflows")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    BY_LRU_FIELD_NUMBER: _ClassVar[int]
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    reason: str
    age_s: float
    blocks: int
    key: str
    value: float
    by_lru: bool
    workflows: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_id: _Optional[str] = ..., reason: _Optional[str] = ..., age_s: _Optional[float] = ..., blocks: _Optional[int] = ..., key: _Optional[str] = ..., value: _Optional[float] = ..., by_lru: _Optional[bool] = ..., workflows: _Optional[_Iterable[str]] = ...) -> None: ...

class ListCacheResponse(_message.Message):
    __slots__ = ("entries", "shared")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[CachedBlocks]
    shared: _containers.RepeatedCompositeFieldContainer[_types_pb2.TierTokens]
    def __init__(self, entries: _Optional[_Iterable[_Union[CachedBlocks, _Mapping]]] = ..., shared: _Optional[_Iterable[_Union[_types_pb2.TierTokens, _Mapping]]] = ...) -> None: ...

class CheckCacheRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckCacheResponse(_message.Message):
    __slots__ = ("checked_blocks", "changed_blocks", "damaged_blocks", "damaged")
    CHECKED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    checked_blocks: int
    changed_blocks: int
    damaged_blocks: int
    damaged: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, checked_blocks: _Optional[int] = ..., changed_blocks: _Optional[int] = ..., damaged_blocks: _Optional[int] = ..., damaged: _Optional[_Iterable[str]] = ...) -> None: ...

class ExplainCacheRequest(_message.Message):
    __slots__ = ("block", "workflow_id", "limit")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    block: str
    workflow_id: str
    limit: int
    def __init__(self, block: _Optional[str] = ..., workflow_id: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ExplainCacheResponse(_message.Message):
    __slots__ = ("keys", "blocks", "decisions")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    blocks: _containers.RepeatedCompositeFieldContainer[CachedBlock]
    decisions: _containers.RepeatedCompositeFieldContainer[CacheDecision]
    def __init__(self, keys: _Optional[_Iterable[str]] = ..., blocks: _Optional[_Iterable[_Union[CachedBlock, _Mapping]]] = ..., decisions: _Optional[_Iterable[_Union[CacheDecision, _Mapping]]] = ...) -> None: ...

class CachedBlock(_message.Message):
    __slots__ = ("worker_id", "run", "policy", "places")
    class Place(_message.Message):
        __slots__ = ("tier", "slot", "value", "standing", "ahead", "candidates", "is_copy", "by_lru")
        TIER_FIELD_NUMBER: _ClassVar[int]
        SLOT_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        STANDING_FIELD_NUMBER: _ClassVar[int]
        AHEAD_FIELD_NUMBER: _ClassVar[int]
        CANDIDATES_FIELD_NUMBER: _ClassVar[int]
        IS_COPY_FIELD_NUMBER: _ClassVar[int]
        BY_LRU_FIELD_NUMBER: _ClassVar[int]
        tier: _types_pb2.Tier
        slot: int
        value: float
        standing: str
        ahead: int
        candidates: int
        is_copy: bool
        by_lru: bool
        def __init__(self, tier: _Optional[_Union[_types_pb2.Tier, str]] = ..., slot: _Optional[int] = ..., value: _Optional[float] = ..., standing: _Optional[str] = ..., ahead: _Optional[int] = ..., candidates: _Optional[int] = ..., is_copy: _Optional[bool] = ..., by_lru: _Optional[bool] = ...) -> None: ...
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    run: CachedBlocks
    policy: str
    places: _containers.RepeatedCompositeFieldContainer[CachedBlock.Place]
    def __init__(self, worker_id: _Optional[str] = ..., run: _Optional[_Union[CachedBlocks, _Mapping]] = ..., policy: _Optional[str] = ..., places: _Optional[_Iterable[_Union[CachedBlock.Place, _Mapping]]] = ...) -> None: ...
