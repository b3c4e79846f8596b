"""What all runs of this benchmark have in common: the tasks, the arrivals, the pressure, and the two policies."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

from benchmarks.policies.benchmark import SALT, SHARES
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.simulator.traces.files import Trace, load_trace
from pbkv_cluster.simulator.traces.split import split

PRESSURE = 0.45  # share of an infinite cache's hits that LRU gets on the GPU alone
CONCURRENCY, THINK_SCALE = 32, 8.0
LRU = CacheConfig(policy="lru", host_policy="lru", guard=False)
OURS = CacheConfig(policy="pbkv", host_policy="pbkv")


def parts(traces: Path, name: str) -> tuple[Trace, Trace]:
    """The training tasks of a workload, and all others."""
    by_name = split(load_trace(traces / f"{name}.jsonl.gz"), SHARES, SALT)
    rest = tuple(chain.from_iterable(by_name[part].workflows for part in SHARES if part != "train"))
    return by_name["train"], replace(by_name["show"], workflows=rest, starts_at=None)
