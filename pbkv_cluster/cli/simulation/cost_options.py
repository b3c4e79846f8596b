"""The device to simulate, as `pbkv simulate` and `pbkv tune` take it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from pbkv_cluster.simulator.engine.cost_model import CostModel

CostModelFile = Annotated[
    Path | None,
    typer.Option("--cost-model", metavar="FILE", help="From `pbkv calibrate`; by default a 14 B model on a large GPU."),
]
MachineName = Annotated[
    str | None,
    typer.Option("--machine", metavar="NAME", help="Calculated for a GPU and a model, such as h100-14b; `list` shows all."),
]

DiskSpeed = Annotated[
    float | None, typer.Option("--disk-gbps", metavar="X", help="GB/s from the disk, and likewise to it; by default 3.")
]
DiskLatency = Annotated[
    float | None,
    typer.Option(
        "--disk-latency-ms", metavar="X", help="Milliseconds for each block on disk, besides its bytes; by default .1."
    ),
]


def with_disk(cost: "CostModel", ratio: float, gbps: float | None, latency_ms: float | None) -> "CostModel":
    """A cost model with another disk, as far as that is given.

    Raises:
        InvalidArgument: no disk can be like that, or there is none.
    """
    for name, value, is_possible, what in (
        ("--disk-gbps", gbps, gbps is None or 0 < gbps < math.inf, "above 0"),
        ("--disk-latency-ms", latency_ms, latency_ms is None or 0 <= latency_ms < math.inf, "at least 0"),
    ):
        if value is not None and not ratio:
            raise InvalidArgument(name, "needs --disk-ratio: without it there is no disk")
        if not is_possible:
            raise InvalidArgument(name, f"must be {what}, got {value}")
    if gbps is not None:
        cost = replace(cost, disk_bytes_per_s=1e9 * gbps)
    return cost if latency_ms is None else replace(cost, disk_latency_s=latency_ms / 1e3)


def cost_of(path: Path | None, name: str | None) -> "CostModel":
    """The cost model that --cost-model or --machine names, or the default one. `--machine list` prints all and exits.

    Raises:
        InvalidArgument: both are given, the file cannot be read, or there is no such machine.
    """
    from pbkv_cluster.simulator.engine.cost_model import CostModel
    from pbkv_cluster.simulator.engine.machines import machine, machine_names

    if path is not None and name is not None:
        raise InvalidArgument("--machine", "cannot be given together with --cost-model: each says how long everything takes")
    if path is not None:
        return CostModel.load(path)
    if name is None:
        return CostModel()
    if name == "list":
        for each in machine_names():
            typer.echo(_line(each))
        raise typer.Exit
    return machine(name).cost()


def _line(name: str) -> str:
    from pbkv_cluster.simulator.engine.machines import machine

    found = machine(name)
    cost = found.cost()
    return (
        f"{name:9} {found.model.name} on {found.gpus}: prefill {1 / cost.prefill_token_s:,.0f} tokens/s, "
        f"decode {1000 * cost.decode_seconds(1, 1024):.1f} ms a token, loads {cost.host_bytes_per_s / 1e9:.0f} GB/s, "
        f"room for {found.gpu_blocks:,} blocks"
    )
