"""64 MiB in blocks of 2 MiB from another process over loopback, all variants in turn."""

import argparse
from contextlib import ExitStack
from statistics import median

import numpy as np

from benchmarks.peers.child import BLOCK_BYTES, BLOCKS, SIZE, Child
from benchmarks.report import Figure, Report
from benchmarks.timing import in_turn, ratio, seconds

OURS = {
    "sendall": ("plain sockets, `sendall` and `recv_into`, no checksums", "sockets", ["sendall"]),
    "sendfile": ("the same with `sendfile`", "sockets", ["sendfile"]),
    "asyncio": ("the same with an event loop that sends", "sockets", ["asyncio"]),
    "peers": ("store/peers, with checksums", "ours", []),
    "grpc": ("gRPC, a stream of messages", "over_grpc", []),
    "ray_blocks": ("Ray's object store, an object for each block", "over_ray", ["blocks"]),
    "ray_whole": ("Ray's object store, one object", "over_ray", ["whole"]),
}
ELSEWHERE = {
    "mooncake": ("Mooncake Store over TCP, into a registered buffer", "over_mooncake"),
    "flight": ("Arrow Flight", "over_flight"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("peers")
    for name, (what, _) in ELSEWHERE.items():
        group.add_argument(f"--{name}", metavar="PYTHON", help=f"interpreter of an environment that has {what}")


def run(arguments: argparse.Namespace) -> Report:
    rounds = 3 if arguments.quick else 25
    what = {"memcpy": "plain copy within a process"}
    with ExitStack() as stack:
        source, target = np.ones(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
        runs = {"memcpy": lambda: seconds(lambda: np.copyto(target, source))}
        for name, (words, script, options) in OURS.items():
            runs[name] = stack.enter_context(Child(script, options)).read
            what[name] = words
        for name, (words, script) in ELSEWHERE.items():
            if python := getattr(arguments, name):
                runs[name] = stack.enter_context(Child(script, python=python)).read
                what[name] = words
        in_turn(2, **runs)  # to warm up
        found = in_turn(rounds, **runs)
    rates = [Figure(what[name], SIZE / median(found[name]) / 1e9, "GB/s") for name in runs]
    ray = min(("ray_blocks", "ray_whole"), key=lambda name: median(found[name]))
    ratios = [
        Figure("store/peers over Ray's pull, the faster of the two", ratio(found, ray, "peers"), "x", at_least=2.0),
        Figure("store/peers over plain sockets", ratio(found, "sendall", "peers"), "x"),
        Figure("store/peers over gRPC", ratio(found, "grpc", "peers"), "x"),
        Figure("`sendall` over `sendfile`", ratio(found, "sendfile", "sendall"), "x"),
        Figure("threads over an event loop", ratio(found, "asyncio", "sendall"), "x"),
    ]
    if "mooncake" in found:
        ratios.append(Figure("store/peers over Mooncake", ratio(found, "mooncake", "peers"), "x", at_least=2.0))
    if "flight" in found:
        ratios.append(Figure("store/peers over Arrow Flight", ratio(found, "flight", "peers"), "x"))
    sizes = f"{BLOCKS} blocks of {BLOCK_BYTES >> 20} MiB from another process over loopback, medians of {rounds} reads in turn"
    details = [
        Figure(f"{what[name]}, read {number}", SIZE / each / 1e9, "GB/s")
        for name in runs
        for number, each in enumerate(found[name])
    ]
    return Report("peers", sizes, (*rates, *ratios), tuple(details))
