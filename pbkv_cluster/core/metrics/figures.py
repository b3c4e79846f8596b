"""The figures of one scrape, in the text format of Prometheus (version 0.0.4)."""

from collections.abc import Iterable, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from pbkv_cluster.core.metrics.histogram import SecondsHistogram
from pbkv_cluster.core.metrics.metric import Kind, Metric

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_FAMILIES = {Kind.COUNTER: CounterMetricFamily, Kind.GAUGE: GaugeMetricFamily, Kind.HISTOGRAM: HistogramMetricFamily}


_PROCESS = ProcessCollector(registry=None)  # one for all scrapes: it looks up when the machine started


class Figures:
    """Collects the values of metrics, each set of labels once."""

    def __init__(self) -> None:
        self._families: dict[Metric, Family] = {}
        self._seen: set[tuple[str, ...]] = set()

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        """Adds the value of a counter or a gauge.

        Args:
            metric: which.
            value: in the unit that its name ends with.
            labels: values of its labels, in their order.
        """
        self._check(metric, labels)
        self._family(metric).add_metric(labels, value)  # type: ignore[attr-defined]

    def has(self, metric: Metric) -> bool:
        """Whether it has been added."""
        return metric in self._families

    def put_each(self, metric: Metric, values: Mapping[str, float], *labels: str) -> None:
        """Adds the values of a metric by its last label; without any, only its name and help.

        Args:
            metric: which.
            values: by the value of its last label.
            labels: values of the labels before it.
        """
        self._family(metric)
        for label, value in values.items():
            self.put(metric, value, *labels, label)

    def put_histogram(self, metric: Metric, histogram: SecondsHistogram, *labels: str) -> None:
        """Adds a distribution."""
        self._check(metric, labels)
        self._family(metric).add_metric(labels, histogram.cumulative(), histogram.sum)  # type: ignore[attr-defined]

    def put_process(self) -> None:
        """Adds what the operating system knows of this process: `process_resident_memory_bytes` and so on."""
        for family in _PROCESS.collect():
            self._families[Metric(family.name, Kind.GAUGE, family.documentation)] = family

    def text(self) -> bytes:
        """All of them, as a response of type `CONTENT_TYPE`."""
        return generate_latest(_Collected(self._families.values()))

    def _check(self, metric: Metric, labels: tuple[str, ...]) -> None:
        assert len(labels) == len(metric.labels), f"{metric.name} has the labels {metric.labels}, not {labels}"
        series = (metric.name, *labels)
        assert series not in self._seen, f"{series} has a value already"
        self._seen.add(series)

    def _family(self, metric: Metric) -> Family:
        family = self._families.get(metric)
        if family is None:
            family = self._families[metric] = _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
        return family


class _Collected(Collector):
    """Families that have been collected already, where prometheus_client wants a collector."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._collected = families

    def collect(self) -> Iterable[Family]:
        return self._collected
