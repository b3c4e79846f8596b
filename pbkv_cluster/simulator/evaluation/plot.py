"""Draws a comparison: for each workload, the GPU hit rate of each policy over the capacity. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from pbkv_cluster.core.errors import FailedPrecondition, InvalidArgument
from pbkv_cluster.core.locations.installation import install_command
from pbkv_cluster.simulator.evaluation.experiment import Row, means


def require_matplotlib() -> None:
    """Raises:
    FailedPrecondition: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        message = f"--plot needs the package matplotlib, which is not installed: {install_command('plot')}"
        raise FailedPrecondition(message) from error


def plot(rows: Sequence[Row], path: Path) -> None:
    """Writes the picture, in the format that the suffix of `path` names.

    Raises:
        FailedPrecondition: matplotlib is not installed.
        InvalidArgument: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    workloads = list(dict.fromkeys(row.workload for row in rows))
    figure = Figure(figsize=(5 * len(workloads), 4), layout="constrained")
    for number, workload in enumerate(workloads, start=1):
        axes = figure.add_subplot(1, len(workloads), number)
        own = [row for row in rows if row.workload == workload]
        for policy in dict.fromkeys(row.policy for row in own):
            points = [
                (means(group, "capacity_blocks"), means(group, "hit_gpu"))
                for pressure in sorted({row.pressure for row in own})
                if (group := [row for row in own if (row.policy, row.pressure) == (policy, pressure)])
            ]
            axes.plot(*zip(*points, strict=True), marker="o", label=policy)
        axes.axhline(means(own, "hit_infinite") or 0.0, color="grey", linestyle=":", label="infinite cache")
        axes.set(title=workload, xlabel="blocks on the GPU", ylabel="GPU hit rate", xscale="log", ylim=(0, 1))
        axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InvalidArgument("--plot", f"cannot write {path}: {error}") from error
