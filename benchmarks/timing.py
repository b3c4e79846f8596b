"""Measures in turn (A B A B), so that other load on the machine affects all variants alike."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter

Samples = Mapping[str, Sequence[float]]


def seconds(run: Callable[[], object]) -> float:
    """Duration of one call, in seconds."""
    start = perf_counter()
    run()
    return perf_counter() - start


def in_turn(rounds: int, **runs: Callable[[], float]) -> dict[str, list[float]]:
    """Runs all variants in turn, `rounds` times. Each returns its own measurement, which can exclude its preparation.

    Returns:
        The measurements of each variant, by round.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(run())
    return samples


def ratio(samples: Samples, above: str, below: str) -> float:
    """Median over the rounds of `above` divided by `below`."""
    return median(a / b for a, b in zip(samples[above], samples[below], strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not exceeded by a share, from 0 to 1, of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
