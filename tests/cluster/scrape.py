"""Reads metrics as Prometheus does: the discovery, then every member's endpoint."""

import json
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Scraped:
    """The metrics of one member."""

    samples: dict[Key, float]
    families: dict[str, str]  # name of a family to its type

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, tuple(sorted(labels.items()))]

    def by(self, name: str, label: str) -> dict[str, float]:
        """Values that are not 0, by one label."""
        return {dict(key[1])[label]: value for key, value in self.samples.items() if key[0] == name and value}


def discover(url: str) -> dict[str, dict[str, str]]:
    """The labels of every target by `instance`, and its address."""
    with urllib.request.urlopen(url, timeout=20) as answer:
        groups = json.load(answer)
    return {group["labels"]["instance"]: {**group["labels"], "address": group["targets"][0]} for group in groups}


def scrape(address: str) -> Scraped:
    """What one process serves."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found = {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}
    return Scraped(found, {family.name: family.type for family in families})


def scrape_all(url: str) -> dict[str, Scraped]:
    """What all members serve, by `instance`."""
    return {name: scrape(target["address"]) for name, target in discover(url).items()}
