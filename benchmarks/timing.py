"""Timing side by side: what is compared is run in turn, so that whatever else the machine does strikes all of it alike."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter

Samples = Mapping[str, Sequence[float]]


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    start = perf_counter()
    run()
    return perf_counter() - start


def in_turn(rounds: int, **runs: Callable[[], float]) -> dict[str, list[float]]:
    """Runs each in turn, `rounds` times: A B A B. Each returns its own measure, so that preparing does not count.

    Returns:
        The measures of each, by round.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(run())
    return samples


def ratio(samples: Samples, above: str, below: str) -> float:
    """The median of the rounds' ratios, `above` over `below`."""
    return median(a / b for a, b in zip(samples[above], samples[below], strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that a share (0 to 1) of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
