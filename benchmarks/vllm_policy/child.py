"""Runs in vLLM's environment: finds the capacities of a workload, and prints one line of JSON for each run."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import vllm

from benchmarks.vllm_policy.replay import Told, replay
from pbkv_cluster.simulator.traces.files import load_trace
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload

VARIANTS = {
    "lru": ("lru", Told()),
    "arc": ("arc", Told()),
    "pbkv": ("pbkv", Told()),
    "pbkv, ends not told": ("pbkv", Told(ends=False)),
    "pbkv, nothing told": ("pbkv", Told(names=False)),
}


def main() -> None:
    options = json.loads(sys.argv[1])
    mix = Mix(workflows=options["workflows"], concurrency=options["concurrency"], think_scale=options["think_scale"])
    source = TokenSource(make_workload([load_trace(Path(options["trace"]))], mix, options["seed"]))
    largest, distinct = source.blocks()
    infinite = replay(source, distinct, "lru", Told()).hit_tokens
    capacity = _capacity(source, largest, distinct, options["share"] * infinite)
    for name in options["variants"]:
        policy, told = VARIANTS[name]
        found = asdict(replay(source, capacity, policy, told))
        print(
            json.dumps({"variant": name, "capacity": capacity, "infinite": infinite, "vllm": vllm.__version__, **found}),
            flush=True,
        )


def _capacity(source: TokenSource, low: int, high: int, wanted: float) -> int:
    """Chunks with which LRU hits about as many tokens, within 2 %."""
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        if replay(source, middle, "lru", Told()).hit_tokens < wanted:
            low = middle
        else:
            high = middle
    return high


if __name__ == "__main__":
    main()
