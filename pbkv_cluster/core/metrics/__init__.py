"""Metrics: what the service counts, under which names, and how that is written for Prometheus.

    metric.py      what a metric is: name, kind, help, labels
    names.py       all metrics, and which member has each
    histogram.py   distribution of seconds, cheap enough for every step
    labels.py      label values that come from clients, bounded in number
    figures.py     the figures of one scrape, as Prometheus reads them
    page.py        writes docs/metrics.md from the names: `python -m pbkv_cluster.core.metrics.page`

Members count in plain integers where something happens. Only when Prometheus asks are these read and written out, so that
metrics add next to nothing to a step.
"""
