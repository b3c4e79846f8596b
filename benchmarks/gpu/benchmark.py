"""Copies, overlap and attention on a GPU, in one command that takes a few minutes: `python -m benchmarks gpu --json OUT`."""

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.gpu import attention, loads
from benchmarks.gpu.device import FULL, SMALL, Device, Sizes
from benchmarks.gpu.overlap import Overlap
from benchmarks.gpu.pools import Pools
from benchmarks.report import Figure, Report
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gpu_worker.kv.copy_methods import METHODS


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("gpu")
    group.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the same code without a GPU")
    group.add_argument("--methods", default=",".join(METHODS), metavar="A,B", help="ways to copy blocks; default all")


def run(arguments: argparse.Namespace) -> Iterator[Report]:
    """Yields a report for each part, as soon as that is done. Goals are those of a GPU."""
    methods = tuple(arguments.methods.split(","))
    if unknown := {*methods} - {*METHODS}:
        raise SystemExit(f"gpu: --methods: there is no {', '.join(sorted(unknown))}, only {', '.join(METHODS)}")
    device = Device(arguments.device, methods)
    for report in _reports(device, SMALL if arguments.quick else FULL):
        yield report if device.is_cuda else replace(report, figures=tuple(map(_without_goal, report.figures)))


def _without_goal(figure: Figure) -> Figure:
    return replace(figure, at_most=None, at_least=None)


def _reports(device: Device, sizes: Sizes) -> Iterator[Report]:
    torch.manual_seed(0)
    if not device.is_cuda:
        torch.set_num_threads(1)
    yield Report("gpu: attention", "bfloat16, 7 sequences, up to 301 tokens", tuple(attention.figures(device)))
    pools = Pools(device, sizes.shape, sizes.gpu_blocks, sizes.tokens // BLOCK_TOKENS)
    block = f"blocks of {sizes.shape.block_bytes / 2**20:.3g} MiB"
    what = f"{pools.load_bytes / 2**20:.0f} MiB in {block}, medians of {sizes.rounds} rounds in turn"
    for method in device.methods:
        yield Report(f"gpu: loads, {loads.WORDS[method]}", what, tuple(loads.figures(device, sizes, pools, method)))
    overlap = Overlap(device, sizes, pools)
    shape = f"{sizes.shape.layers} layers, {overlap.stack.parameters / 1e9:.1f} G parameters, {block}"
    for method in device.methods:
        figures = (*overlap.hidden(method), *overlap.prefetch(method), *overlap.hit(method))
        yield Report(f"gpu: overlap, {loads.WORDS[method]}", f"{shape}, medians of {sizes.rounds} rounds in turn", figures)
