"""What alerts and dashboard ask for exists: every metric and every label in them is one of ours."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.metric import Kind
from tests.deploy.dashboard import panels, queries
from tests.deploy.prometheus import DEPLOY

FROM_DISCOVERY = {"instance", "kind", "node", "cluster"}
PARTS = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count"), Kind.COUNTER: ("",), Kind.GAUGE: ("",)}
LABELS = {
    metric.name + part: {*metric.labels, *FROM_DISCOVERY, *({"le"} if part == "_bucket" else ())}
    for metric in names.ALL
    for part in PARTS[metric.kind]
}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Our metrics in a query, each with the labels that it is selected by."""
    for name, labels in re.findall(r"\b(pbkv_\w+)(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels))


QUERIES = [*queries(), *((alert["alert"], alert["expr"]) for alert in alerts())]


@pytest.mark.parametrize(("where", "expression"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_asks_for_metrics_and_labels_that_there_are(where: str, expression: str) -> None:
    found = list(selectors(expression))
    assert found or "process_" in expression or "up{" in expression
    for name, labels in found:
        assert name in LABELS, f"{where}: there is no {name}"
        assert labels <= LABELS[name], f"{where}: {name} has no {labels - LABELS[name]}"
    grouped = {label.strip() for each in re.findall(r"by \(([^)]+)\)", expression) for label in each.split(",")}
    assert grouped <= set().union(*(LABELS[name] for name, _ in found))


def test_every_alert_says_what_it_means_and_is_tested() -> None:
    tested = (DEPLOY.parent / "tests" / "deploy" / "alerts_test.yaml").read_text()
    for alert in alerts():
        assert alert["annotations"].keys() == {"summary", "description"}, alert["alert"]
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert f'alertname="{alert["alert"]}"' in tested, f"{alert['alert']} is not tested in alerts_test.yaml"


def test_panels_have_titles_of_their_own_and_do_not_overlap() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
