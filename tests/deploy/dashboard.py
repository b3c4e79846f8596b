"""The queries of the Grafana dashboard."""

import json
from typing import Any

from tests.deploy.prometheus import DEPLOY


def panels() -> list[dict[str, Any]]:
    """The panels that show something."""
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Each query, with the title of its panel."""
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
