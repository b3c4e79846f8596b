"""docs/operate.md has a section on each alert, which names the metrics that the alert looks at, and none on others."""

import re

import yaml

from tests.docs.pages import ROOT

ALERTS = {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}


def sections() -> dict[str, str]:
    """The text on each alert."""
    text = (ROOT / "docs" / "operate.md").read_text().split("\n## Alerts\n")[1].split("\n## ")[0]
    parts = re.split(r"^### (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    assert list(sections()) == list(ALERTS)


def test_a_section_says_what_it_means_what_to_look_at_and_what_to_do() -> None:
    for alert, text in sections().items():
        found = re.findall(r"^- (Means|Look at|Do): .", text, re.MULTILINE)
        assert found == ["Means", "Look at", "Do"], alert


def test_a_section_names_the_metrics_of_its_alert() -> None:
    for alert, text in sections().items():
        metrics = set(re.findall(r"\b(?:pbkv_\w+|up)\b(?=\{| |\[)", ALERTS[alert]))
        assert metrics, alert
        named = {metric.removesuffix("_bucket") for metric in metrics}
        assert {metric for metric in named if f"`{metric}" not in text} == set(), alert
