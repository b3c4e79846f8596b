"""Metrics of a member in the text format of Prometheus."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Scrape:
    """What a process has counted. Names are those of `core.metrics.names`; histograms have `_bucket`, `_sum` and `_count`."""

    series: dict[str, dict[Labels, float]] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """One series; 0 if there is none."""
        return self.series.get(name, {}).get(tuple(sorted(labels.items())), 0.0)

    def has(self, name: str) -> bool:
        """Whether there is any series of that name."""
        return name in self.series

    def by(self, name: str, label: str) -> dict[str, float]:
        """All series of a metric by the value of one label, summed over others."""
        sums: dict[str, float] = {}
        for labels, value in self.series.get(name, {}).items():
            own = dict(labels)[label]
            sums[own] = sums.get(own, 0.0) + value
        return sums

    def total(self, name: str) -> float:
        """The sum over all labels."""
        return sum(self.series.get(name, {}).values())


def parse(text: str) -> Scrape:
    """Takes in samples of our own metrics and of the process; whatever else there is, is skipped."""
    scrape = Scrape()
    for line in text.split("\n"):  # the format has no other end of line
        if not line.startswith(("pbkv_", "process_")):
            continue
        series, _, number = line.rpartition(" ")
        name, labels = _named(series)
        scrape.series.setdefault(name, {})[labels] = float(number)
    return scrape


@lru_cache(maxsize=1 << 14)  # a member's series are the same in each answer: only their values change
def _named(series: str) -> tuple[str, Labels]:
    name, _, rest = series.partition("{")
    return name, tuple(sorted(_labels(rest))) if rest else ()


def _labels(text: str) -> Iterator[tuple[str, str]]:
    for label, value in _LABEL.findall(text):
        yield label, _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], value) if "\\" in value else value


Scrapes = Mapping[str, Scrape]
"""The answers of one round, by member."""
