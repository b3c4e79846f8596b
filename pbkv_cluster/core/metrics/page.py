"""Writes docs/metrics.md from the names: `python -m pbkv_cluster.core.metrics.page [FILE]`, by default to standard output."""

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.metric import Metric, Source
from pbkv_cluster.core.text.markdown import code, table, write_page

_HEAD = """\
# Metrics

Every process of a cluster serves its own metrics to Prometheus, on a port of its own: `GET /metrics`. One more endpoint says
where they all are, `pbkv serve` prints it and `pbkv status` shows it: `GET /discovery` answers in the format of
[http_sd](https://prometheus.io/docs/prometheus/latest/http_sd/), and follows members that come, go and start again. With
`metrics.port: 26161` in the configuration, it is where [deploy/prometheus.yaml](../deploy/prometheus.yaml) looks for it. The
process that runs the cluster (`pbkv serve`) answers there, because it outlives all members. All bind the address of the
services (`cluster.host`), loopback by default. `metrics.enabled: false` switches everything off.

Discovery gives every series four labels: `instance` is the name of the member (`worker-0`), which stays the same when the
member starts again at another address, `kind` what it is (`worker`), `node` where it runs, and `cluster` the cluster's name.

{labels}

Hit rates are quotients of counters, so that the reader chooses the time:

```promql
sum(rate(pbkv_available_tokens_total[5m])) / sum(rate(pbkv_prompt_tokens_total[5m]))
sum by (tier) (rate(pbkv_delivered_tokens_total[5m])) / on () group_left sum(rate(pbkv_prompt_tokens_total[5m]))
sum by (order) (rate(pbkv_guard_hit_tokens_total[5m])) / on () group_left sum(rate(pbkv_guard_prompt_tokens_total[5m]))
```

The last one compares what the cache had with what LRU alone would have had (`order="lru"`). Counters begin at 0 with their
process.

[deploy/alerts.yaml](../deploy/alerts.yaml) has alerts, each of which says what it means and what to do first, and
[deploy/grafana-dashboard.json](../deploy/grafana-dashboard.json) a dashboard for Grafana. `make test-prometheus` tests both
with a real Prometheus.

This page is written by `python -m pbkv_cluster.core.metrics.page` from `pbkv_cluster/core/metrics/names.py`.
"""

_TITLES = {
    Source.ALL: "Every process",
    Source.HEAD: "The process that runs the cluster",
    Source.GATEWAY: "Gateway",
    Source.WORKER: "Workers",
    Source.PREDICTOR: "Predictor",
    Source.HOST_STORE: "Host stores",
    Source.OTEL: "Receiver of spans",
    Source.SIDECAR: "Sidecar",
}


def page() -> str:
    """The page, in Markdown."""
    labels = (names.__doc__ or "").split("\n\n", 1)[1].strip()
    return _HEAD.format(labels=labels) + "".join(_section(source) for source in Source)


def _section(source: Source) -> str:
    rows = [_row(metric) for metric in names.ALL if source in metric.sources]
    more = (
        "\nAnd what the operating system knows of it: `process_resident_memory_bytes` and so on.\n"
        if source is Source.ALL
        else ""
    )
    return f"\n## {_TITLES[source]}\n\n{table(('metric', 'kind', 'labels', 'meaning'), rows)}{more}"


def _row(metric: Metric) -> tuple[str, ...]:
    return code(metric.name), str(metric.kind), ", ".join(code(label) for label in metric.labels), metric.help


if __name__ == "__main__":
    write_page(page())
