"""Compares policies over pressures and seeds: one row for each run, and means of rows."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.predictor_service.access.prior import load_prior
from pbkv_cluster.reuse.model.access_models import train as train_access
from pbkv_cluster.simulator.engine.simulation import Setup
from pbkv_cluster.simulator.evaluation.comparison import BASELINE, BOUND, Comparison
from pbkv_cluster.simulator.evaluation.grid import check_grid
from pbkv_cluster.simulator.evaluation.row import Row
from pbkv_cluster.simulator.prediction.training import trained_state
from pbkv_cluster.simulator.traces.files import Trace
from pbkv_cluster.simulator.workload.access_logs import access_logs
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload

__all__ = ["BASELINE", "BOUND", "Plan", "Row", "compare", "means", "train_state"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare."""

    policies: tuple[str, ...]
    pressures: tuple[float, ...]
    seeds: int = 1
    host_ratio: float = 0.0  # host blocks per GPU block
    disk_ratio: float = 0.0  # disk blocks per GPU block
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: a value is out of range, or given twice.
        """
        check_grid(self.policies, self.pressures, self.host_ratio, self.disk_ratio)
        if self.seeds < 1:
            raise InvalidArgument("seeds", f"must be at least 1, got {self.seeds}")


def compare(
    traces: Sequence[Trace],
    plan: Plan,
    setup: Setup,
    starts: Sequence[float] | None = None,
    on_run: Callable[[], None] = lambda: None,
) -> Iterator[Row]:
    """Runs every policy of a plan on one workload, drawn from all of `traces`.

    Args:
        traces: what the workload is drawn from.
        plan: what to compare.
        setup: everything else; its capacities and policy are ignored.
        starts: arrival times in seconds; None: a closed loop.
        on_run: called after each run.

    Raises:
        InvalidArgument: see `make_workload`, `PressureScale` and `simulate`.
    """
    for seed in range(plan.seeds):
        tokens = TokenSource(make_workload(traces, plan.mix, seed, starts))
        comparison = Comparison(tokens, replace(setup, seed=seed), plan.host_ratio, on_run, disk_ratio=plan.disk_ratio)
        for pressure in plan.pressures:
            if BOUND in plan.policies:
                comparison.row(BOUND, pressure)  # first, so that the gap is known for the others
            for policy in plan.policies:
                yield comparison.row(policy, pressure)


def train_state(setup: Setup, traces: Sequence[Trace]) -> Setup:
    """The setup with a predictor and an access model trained on the workflows of some traces, one after the other."""
    workflows = [workflow for trace in traces for workflow in trace.workflows]
    trained = trained_state(setup.predictor, workflows)
    access = train_access(access_logs(workflows, trained.workloads), load_prior(setup.predictor.prior))
    return replace(setup, predictor_state=trained.state, access=access)


def means(rows: Sequence[Row], name: str) -> float | None:
    """The mean of one column over the rows that have it; None if none has."""
    values = [value for row in rows if (value := getattr(row, name)) is not None]
    return math.fsum(values) / len(values) if values else None
