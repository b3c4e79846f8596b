"""`PbkvConnector`: the hooks of vLLM's `KVConnectorBase_V1`, each handed on to the side that it belongs to.

Loads run between steps, while other requests compute, and not layer by layer: a block's checksum covers all its layers, and
hooks inside the layers would force vLLM to cut its CUDA graphs there.
"""

from collections.abc import Iterable
from typing import Any

import torch
from vllm import __version__
from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.integrations.vllm.block_events import make_block_events
from pbkv_cluster.integrations.vllm.messages import StepPlan, WorkerIntroduction
from pbkv_cluster.integrations.vllm.namespaces import kernels, namespace
from pbkv_cluster.integrations.vllm.options import ConnectorOptions, check_engine, check_version
from pbkv_cluster.integrations.vllm.scheduler_side import SchedulerSide
from pbkv_cluster.integrations.vllm.stats import PbkvPromMetrics, PbkvStats
from pbkv_cluster.integrations.vllm.worker_side import WorkerSide


class PbkvConnector(KVConnectorBase_V1, SupportsHMA):
    """Keeps the KV of full blocks in the node's store, and loads what a prompt finds there."""

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """Raises:
        Refused: the connector cannot serve this engine; says why and what to change.
        """
        options = ConnectorOptions.of(vllm_config.kv_transfer_config.kv_connector_extra_config or {})
        check_version(__version__, options.force_version)
        check_engine(vllm_config, kv_cache_config)
        super().__init__(vllm_config, role, kv_cache_config)
        self._options = options
        self._block_count: int = kv_cache_config.num_blocks
        self.scheduler_side: SchedulerSide | None = None
        self.worker_side: WorkerSide | None = None
        if role is KVConnectorRole.SCHEDULER:
            tokens = vllm_config.cache_config.block_size
            events = make_block_events(vllm_config, tokens)
            transfer = vllm_config.kv_transfer_config
            self.scheduler_side = SchedulerSide(
                options,
                tokens,
                generate_block_hash_extra_keys,
                events,
                loads=transfer.is_kv_consumer,
                saves=transfer.is_kv_producer,
            )
        else:
            parallel = vllm_config.parallel_config
            is_first = parallel.rank == 0
            self.worker_side = WorkerSide(options.store, self._namespace, reports=is_first)

    @property
    def requires_kv_delivery(self) -> bool:
        """A block that is not stored is a miss later, and no reason to compute a request again."""
        return False

    # --- in a worker ---

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._worker.register_kv_caches(kv_caches, self._block_count)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return self._worker.get_handshake_metadata()

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, StepPlan)
        self._worker.bind(connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._worker.start_load_kv()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are complete before a request is scheduled."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Blocks are stored whole, after the last layer."""

    def wait_for_save(self) -> None:
        self._worker.wait_for_save()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self._worker.get_finished() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.get_block_ids_with_load_errors()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self._worker.take_report()

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        if self.worker_side is None:  # vLLM asks the scheduler's, too
            return None
        stats = self.worker_side.take_stats()
        return PbkvStats(data=stats) if stats is not None else None

    # --- in the scheduler ---

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]) -> None:
        workers = {rank: worker for rank, worker in metadata.items() if isinstance(worker, WorkerIntroduction)}
        self._scheduler.meet(workers)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        return self._scheduler.get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._scheduler.update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return self._scheduler.build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        self._scheduler.update_connector_output(connector_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        self._scheduler.request_finished(request)
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        self._scheduler.request_finished(request)
        return False, None

    def take_events(self) -> Iterable[Any]:
        return self._scheduler.take_events()

    def reset_cache(self) -> bool | None:
        return self._scheduler.reset_cache()

    # --- in both ---

    def shutdown(self) -> None:
        for side in (self.scheduler_side, self.worker_side):
            if side is not None:
                side.shutdown()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        return PbkvStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: dict[int, list[object]]
    ) -> KVConnectorPromMetrics:
        return PbkvPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @property
    def _worker(self) -> WorkerSide:
        assert self.worker_side is not None
        return self.worker_side

    @property
    def _scheduler(self) -> SchedulerSide:
        assert self.scheduler_side is not None
        return self.scheduler_side

    def _namespace(self, layout: str) -> Namespace:
        tensor, pipeline = get_tp_group(), get_pp_group()
        rank = f"{tensor.rank_in_group}/{tensor.world_size}"
        if pipeline.world_size > 1:
            rank += f" stage {pipeline.rank_in_group}/{pipeline.world_size}"
        config = self._vllm_config
        backends = [".".join(backend.full_cls_name()) for backend in get_current_attn_backends(config)]
        readers = kernels(config.device_config.device, backends)
        return namespace(config, __version__, f"{layout}; {readers}", rank, self._options.model_revision)
