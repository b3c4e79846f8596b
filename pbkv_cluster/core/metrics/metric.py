"""What a metric is, and a list of metrics."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a metric's values mean, in the words of Prometheus."""

    COUNTER = "counter"  # only grows, from 0 at the start of its process
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Who has a metric: a kind of member, the process that runs the cluster, or all of these."""

    ALL = "all"
    HEAD = "head"
    GATEWAY = "gateway"
    WORKER = "worker"
    PREDICTOR = "predictor"
    HOST_STORE = "host-store"
    OTEL = "otel"
    SIDECAR = "sidecar"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Names follow the conventions of Prometheus: `pbkv_` first, then the thing, then the base unit (`_seconds`, `_bytes`,
    `_tokens`, `_blocks`); counters end in `_total`.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()


class MetricList(list[Metric]):
    """Metrics in the order in which they are named, each by one call."""

    def counter(self, name: str, description: str, *sources: Source, labels: tuple[str, ...] = ()) -> Metric:
        return self._add(Metric(name, Kind.COUNTER, description, labels, sources))

    def gauge(self, name: str, description: str, *sources: Source, labels: tuple[str, ...] = ()) -> Metric:
        return self._add(Metric(name, Kind.GAUGE, description, labels, sources))

    def histogram(self, name: str, description: str, *sources: Source, labels: tuple[str, ...] = ()) -> Metric:
        return self._add(Metric(name, Kind.HISTOGRAM, description, labels, sources))

    def _add(self, metric: Metric) -> Metric:
        self.append(metric)
        return metric
