"""The cache policy that vLLM loads: `eviction_policy` and `cache_policy_module_path` of its `OffloadingConnector`.

It runs in vLLM's scheduler, so nothing here waits for anybody: learning has a thread of its own, and so has the connection to a
predictor. Settings are those of `Config`, which vLLM's process reads from its environment: `PBKV_VLLM_...`, `PBKV_CACHE_...`,
and `PBKV_CONFIG` for a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import fields

import vllm
from vllm.v1.kv_offload.base import OffloadKey, ReqContext
from vllm.v1.kv_offload.cpu.policies.base import CachePolicy, ChunkStatus

from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.config import Config, load
from pbkv_cluster.integrations.engine_versions import check_version
from pbkv_cluster.integrations.vllm_policy.advisor import Advisor
from pbkv_cluster.integrations.vllm_policy.learning import BackgroundLearner, Knowledge
from pbkv_cluster.integrations.vllm_policy.predictor_feed import PredictorFeed, connect_as_configured
from pbkv_cluster.predictor_service.access.prior import load_prior

if "_offload_key_positions" not in {field.name for field in fields(ReqContext)}:
    raise ImportError(f"vLLM {vllm.__version__} does not tell its cache policies the order of a request's chunks")


class PbkvCachePolicy(CachePolicy):
    """Evicts first what has the least value by learned reuse, and by recency while that is better. See the package's guide."""

    def __init__(self, cache_capacity: int) -> None:
        """Args:
        cache_capacity: chunks.

        Raises:
            ConfigError: a setting is invalid; names the field and its source.
            InvalidArgument: this version of vLLM was not tested.
        """
        super().__init__(cache_capacity)
        config = load(env=os.environ).config
        check_version("vllm", vllm.__version__, config.plugins.any_version)
        self.advisor: Advisor[ChunkStatus] = Advisor(cache_capacity, config, self._clock(), self._knowledge(config))

    def _clock(self) -> Clock:
        return SystemClock()

    def _knowledge(self, config: Config) -> Knowledge:
        prior = load_prior(config.predictor.prior)
        if not config.vllm.predictor:
            return BackgroundLearner(prior)
        connect_as_configured(config.security, os.environ)
        return PredictorFeed(config.vllm.predictor, prior)

    def get(self, key: OffloadKey) -> ChunkStatus | None:
        return self.advisor.order.get(key)

    def insert(self, key: OffloadKey, chunk: ChunkStatus, req_context: ReqContext | None = None) -> None:
        self.advisor.order.add(key, chunk)  # vLLM 0.33 has a third argument

    def remove(self, key: OffloadKey) -> None:
        self.advisor.order.remove(key)

    def touch(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:
        self.advisor.order.use(keys)

    def on_store_miss(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:
        self.advisor.storing(keys, req_context)

    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[OffloadKey]],
        insertion_only_keys: set[OffloadKey],
        reused_keys: set[OffloadKey],
        req_context: ReqContext,
    ) -> None:
        for keys in key_groups:
            self.advisor.order.use(keys)
        self.advisor.finished([key for keys in key_groups for key in keys], req_context)

    def evict(self, n: int, protected: set[OffloadKey]) -> list[tuple[OffloadKey, ChunkStatus]] | None:
        victims = self.advisor.order.evict(n, protected)
        return None if victims is None else [(OffloadKey(key), chunk) for key, chunk in victims]

    def clear(self) -> None:
        self.advisor.clear()
