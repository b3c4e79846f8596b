"""Statistics of the connector, in vLLM's log lines and at its own Prometheus endpoint."""

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass
class PbkvStats(KVConnectorStats):
    """What has happened in an interval, on all ranks: `WorkerSide.take_stats` says what `data` has."""

    def reset(self) -> None:
        self.data = dict[str, Any]()

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> "PbkvStats":
        """Adds another worker's, or a later interval's."""
        if not self.data:
            self.data = dict(other.data)
        elif other.data:
            blocks = dict(self.data["blocks"])
            for outcome, count in other.data["blocks"].items():
                blocks[outcome] = blocks.get(outcome, 0) + count
            self.data = {
                **other.data,
                "blocks": blocks,
                "load_seconds": [*self.data["load_seconds"], *other.data["load_seconds"]],
                "save_seconds": [*self.data["save_seconds"], *other.data["save_seconds"]],
            }
        return self

    def reduce(self) -> dict[str, int | float]:
        """For a line of vLLM's log."""
        if not self.data:
            return {}
        blocks = {f"pbkv {outcome}": count for outcome, count in sorted(self.data["blocks"].items())}
        return {
            **blocks,
            "pbkv loads": len(self.data["load_seconds"]),
            "pbkv load seconds": round(sum(self.data["load_seconds"]), 4),
            "pbkv save seconds": round(sum(self.data["save_seconds"]), 4),
        }


class PbkvPromMetrics(KVConnectorPromMetrics):
    """The same as counters and histograms, with vLLM's labels."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._blocks = self._counter_cls(
            name="vllm:pbkv_blocks_total",
            documentation="Blocks of the node's KV store by what became of them: stored, loaded from where, or why not.",
            labelnames=[*labelnames, "outcome"],
        )
        self._loads = self._histogram_cls(
            name="vllm:pbkv_load_seconds",
            documentation="Seconds from the start of a request's load from the KV store to its end.",
            buckets=_SECONDS,
            labelnames=labelnames,
        )
        self._saves = self._histogram_cls(
            name="vllm:pbkv_save_seconds",
            documentation="Seconds for which a step was held up to copy new blocks to the KV store.",
            buckets=_SECONDS,
            labelnames=labelnames,
        )
        self._held = self._gauge_cls(
            name="vllm:pbkv_held_blocks",
            documentation="Blocks in this engine's region of the KV store.",
            labelnames=labelnames,
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Adds an interval's."""
        if not transfer_stats_data:
            return
        labels = self.per_engine_labelvalues[engine_idx]
        for outcome, count in transfer_stats_data["blocks"].items():
            self._blocks.labels(*labels, outcome).inc(count)
        for seconds in transfer_stats_data["load_seconds"]:
            self._loads.labels(*labels).observe(seconds)
        for seconds in transfer_stats_data["save_seconds"]:
            self._saves.labels(*labels).observe(seconds)
        self._held.labels(*labels).set(transfer_stats_data["held_blocks"])
