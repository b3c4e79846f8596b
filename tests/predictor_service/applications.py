"""Made-up applications, whose prompts have a template and a task."""

import random

PIECES = 20


def application(name: str) -> tuple[int, ...]:
    """The pieces of its template."""
    return tuple(random.Random(name).sample(range(1 << 32), PIECES))


def task(name: str) -> tuple[int, ...]:
    return tuple(random.Random(f"task {name}").sample(range(1 << 32), PIECES))
