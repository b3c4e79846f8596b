"""The situations that are compared: one to start from, and others in which one thing is different."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """A situation."""

    memory: float = 0.6  # blocks of the GPU over those of the contexts of all open workflows
    host: float = 0.15  # blocks of host memory over those of the GPU
    bandwidth: float = 5e10  # bytes a second from host memory
    concurrency: int = 24  # open workflows
    prompt: float = 1.0  # factor of all parts of the prompts
    reply: int = 60  # tokens, median
    pause: float = 1.0  # factor of the durations of tools
    agents: int = 4  # who hand work round, or one that works in a loop


SWEPT: dict[str, tuple[float, ...]] = {
    "memory": (0.3, 0.45, 0.6, 0.8, 1.1),
    "host": (0.0, 0.15, 0.5, 2.0),
    "bandwidth": (5e10, 5e9, 1e9),
    "concurrency": (8, 24, 64),
    "prompt": (0.25, 1.0, 2.0),
    "reply": (15, 60, 240),
    "pause": (0.0, 1.0, 10.0),
    "agents": (1, 4),
}
WORDS = {
    "memory": "GPU memory / contexts",
    "host": "host / GPU memory",
    "bandwidth": "GB/s from the host",
    "concurrency": "open workflows",
    "prompt": "length of prompts",
    "reply": "tokens of a reply",
    "pause": "duration of tools",
    "agents": "agents",
}


def points(quick: bool) -> Iterator[tuple[str, float, Point]]:
    """What is swept, its value, and the situation; the one to start from comes once in each sweep."""
    assert set(SWEPT) == {item.name for item in fields(Point)}
    for name, values in list(SWEPT.items())[: 1 if quick else None]:
        for value in values[: 2 if quick else None]:
            change: dict[str, Any] = {name: int(value) if name in ("concurrency", "reply", "agents") else value}
            yield name, value, replace(Point(), **change)
