"""What is added to a trace to make a workload of it, as `pbkv simulate`, `pbkv tune` and `pbkv report` take it."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pbkv_cluster.simulator.traces.files import Trace

ThinkScale = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Factor of a random pause, median 2 s, that is added to each; by default 1 if the trace logs none, or else 0.",
        show_default=False,
    ),
]


def tell_assumed_pauses(workloads: "Iterable[Sequence[Trace]]", think_scale: float | None) -> None:
    """Says on standard error to which workloads pauses are added because their traces log none.

    Args:
        workloads: the traces that each is made of.
        think_scale: as it was given.
    """
    from pbkv_cluster.simulator.workload.workload import assumed_think_scale

    if think_scale is not None:
        return
    for traces in workloads:
        if assumed_think_scale(traces):
            name = "+".join(trace.name for trace in traces)
            typer.echo(
                f"pbkv: {name}: no pauses are logged, so random ones, median 2 s, are put between steps (--think-scale)",
                err=True,
            )
