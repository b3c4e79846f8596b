"""Policies and pressures as `pbkv simulate` and `pbkv tune` take them."""

from collections.abc import Iterable, Sequence

import typer

from pbkv_cluster.core.errors import InvalidArgument


def parse_pressures(text: str) -> tuple[float, ...]:
    """The numbers in the value of --pressure.

    Raises:
        InvalidArgument: one of them is not a number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgument("--pressure", f"must be numbers with commas between them, got {text!r}") from None


def check_policies(names: Sequence[str]) -> None:
    """Raises:
    InvalidArgument: there is no policy of one of these names.
    """
    from pbkv_cluster.cache.policies import POLICIES

    for name in names:
        POLICIES.get(name)


def warn_missed_pressures(missed: Iterable[tuple[str, float]]) -> None:
    """Says on standard error which workloads could not be run at which of the requested pressures, and why."""
    for workload, pressure in sorted(set(missed)):
        typer.echo(
            f"pbkv: {workload}: no capacity gives LRU {pressure:g} of the hits; the nearest was taken. A pool has to hold the "
            "longest step: more --concurrency makes smaller shares possible.",
            err=True,
        )
