"""Metrics: names that keep to the conventions, a page that is up to date, and text that Prometheus can read."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.core.metrics.histogram import SecondsHistogram
from pbkv_cluster.core.metrics.labels import OTHER, UNNAMED, BoundedLabels
from pbkv_cluster.core.metrics.metric import Kind
from pbkv_cluster.core.metrics.page import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
UNITS = ("seconds", "bytes", "tokens", "blocks", "ratio")


def samples(figures: Figures) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus reads, by name and labels."""
    families = text_string_to_metric_families(figures.text().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_the_page_is_what_the_names_say() -> None:
    assert PAGE.read_text() == page(), "run: python -m pbkv_cluster.core.metrics.page docs/metrics.md"


def test_names_are_unique_and_keep_to_the_conventions() -> None:
    assert [name for name, times in Counter(metric.name for metric in names.ALL).items() if times > 1] == []
    for metric in names.ALL:
        assert re.fullmatch(r"pbkv_[a-z]+(_[a-z]+)*", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert metric.sources, metric.name
        assert metric.help, metric.name
        if metric.kind is Kind.HISTOGRAM:
            assert metric.name.endswith("_seconds"), metric.name


def test_no_label_is_an_id_of_a_client() -> None:
    labels = {label for metric in names.ALL for label in metric.labels}
    bounded = {"tier", "source", "target", "reason", "outcome", "phase", "order", "probability", "version", "limit"}
    assert labels - bounded == {"worker", "member", "workload", "tenant"}


def test_what_is_put_is_what_prometheus_reads() -> None:
    figures = Figures()
    figures.put(names.PROMPT_TOKENS, 12_345_678_901)
    figures.put(names.GUARD_SAVED_SECONDS, -1.25)
    figures.put_each(names.DELIVERED_TOKENS, {"gpu": 3, "host": 4})
    figures.put(names.REDIS_REACHABLE, True)
    figures.put(names.WORKLOAD_STEPS, 1, 'a "b"\n\\ü')
    figures.put(names.TRANSFER_SECONDS, 0.5, "gpu", "host")
    assert samples(figures) == {
        ("pbkv_prompt_tokens_total", ()): 12_345_678_901,
        ("pbkv_guard_saved_seconds", ()): -1.25,
        ("pbkv_delivered_tokens_total", (("tier", "gpu"),)): 3,
        ("pbkv_delivered_tokens_total", (("tier", "host"),)): 4,
        ("pbkv_redis_reachable", ()): 1,
        ("pbkv_workload_steps_total", (("workload", 'a "b"\n\\ü'),)): 1,
        ("pbkv_transfer_seconds_total", (("source", "gpu"), ("target", "host"))): 0.5,
    }


def test_a_value_is_put_once_and_with_all_labels() -> None:
    figures = Figures()
    figures.put(names.PROMPT_TOKENS, 1)
    with pytest.raises(AssertionError, match="already"):
        figures.put(names.PROMPT_TOKENS, 2)
    with pytest.raises(AssertionError, match="has the labels"):
        figures.put(names.DELIVERED_TOKENS, 2)


@given(st.lists(st.floats(0, 1e4), max_size=60))
def test_a_histogram_counts_what_is_at_most_each_bound(durations: list[float]) -> None:
    histogram = SecondsHistogram((0.5, 1.0, 250.0))
    for each in durations:
        histogram.add(each)
    figures = Figures()
    figures.put_histogram(names.TTFT_SECONDS, histogram)
    found = samples(figures)
    for bound in (0.5, 1.0, 250.0):
        key = ("pbkv_ttft_seconds_bucket", (("le", str(bound)),))
        assert found[key] == sum(each <= bound for each in durations)
    assert found["pbkv_ttft_seconds_bucket", (("le", "+Inf"),)] == found["pbkv_ttft_seconds_count", ()] == len(durations)
    assert found["pbkv_ttft_seconds_sum", ()] == pytest.approx(sum(durations))


@given(st.lists(st.text(max_size=300), max_size=50), st.integers(0, 10))
@example(["x" * 128 + "a", "x" * 128 + "b", "", UNNAMED, OTHER], 10)
def test_labels_are_bounded_in_number_and_length_and_never_change(values: list[str], most: int) -> None:
    labels = BoundedLabels(most)
    first = {value: labels.label(value) for value in values}
    assert {value: labels.label(value) for value in values} == first
    assert len(set(first.values()) - {OTHER}) <= most
    assert all(label and len(label.encode()) <= 128 for label in first.values())
    named = [label for label in first.values() if label != OTHER]
    assert len(set(named)) == len(named), "two values have one label"
    if "" in first:
        assert first[""] in (UNNAMED, OTHER)
