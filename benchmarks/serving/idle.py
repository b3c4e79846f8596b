"""The memory of an idle local cluster: Ray's processes, Redis, and ours.

PSS divides a shared page among the processes that share it, so it can be added up; RSS counts the page in each of them.
"""

import argparse
import time
from collections import defaultdict

import psutil

from benchmarks.report import Figure, Report
from benchmarks.serving.cluster import CONFIG, running

_MIB = 1 << 20
_SETTLE_S = 5.0
_GOAL_MIB = 1229  # 1.2 GiB


def run(arguments: argparse.Namespace) -> Report:
    quick: bool = arguments.quick
    cluster = running()
    time.sleep(1.0 if quick else _SETTLE_S)
    names = {pid: name for name, pid in cluster.pids().items()} | {cluster.pid: "starter"}
    root = psutil.Process(cluster.pid)
    sizes: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for process in (root, *root.children(recursive=True)):
        try:
            memory, called = process.memory_full_info(), process.name()
        except psutil.NoSuchProcess:
            continue
        owner = "ours" if process.pid in names else "Redis" if called.startswith("redis") else "Ray"
        sizes[owner].append((names.get(process.pid, called), memory.pss, memory.rss))
    figures = []
    for owner, processes in sorted(sizes.items()):
        figures += [Figure(f"{owner}: {name}, PSS", pss / _MIB, "MiB") for name, pss, _ in sorted(processes)]
        figures.append(Figure(f"{owner}, PSS", sum(pss for _, pss, _ in processes) / _MIB, "MiB"))
    everything = [entry for processes in sizes.values() for entry in processes]
    figures.append(Figure("in all, PSS", sum(pss for _, pss, _ in everything) / _MIB, "MiB", at_most=_GOAL_MIB))
    figures.append(Figure("in all, RSS", sum(rss for _, _, rss in everything) / _MIB, "MiB"))
    pools = f"{CONFIG.engine.gpu_blocks} and {CONFIG.engine.host_blocks} blocks"
    what = f"{CONFIG.cluster.workers} workers with the small model on a CPU, pools of {pools}, not used yet"
    return Report("idle", what, tuple(figures))
