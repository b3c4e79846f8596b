"""Time and memory of the bookkeeping of prefix tree and cache, without any KV; and of the cluster's index.

4,096 sequences of 4,096 tokens share their first half. Each belongs to a workflow of its own, so that owners are recorded, and
all blocks are in a tier. Times are medians over single operations. Most are measured under policy `lru`, whose values cost
nothing, forecasts under `pbkv-paper`; then come what policy `pbkv` adds to a step, and what the guard adds to that.
"""

import argparse
import itertools
import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median
from time import perf_counter, thread_time
from typing import TypeVar

from benchmarks.report import Figure, Report
from benchmarks.serving import cluster_index
from benchmarks.timing import seconds
from pbkv_cluster.cache import factory
from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.decisions.log import DecisionLog
from pbkv_cluster.cache.step_identity import StepIdentity
from pbkv_cluster.cache.tiers.announcements import ChangeListener
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine
from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.tokens import BLOCK_BYTES, BLOCK_TOKENS, TOKEN_BYTES, count, full_blocks
from pbkv_cluster.core.usage import Tier

SPACE = Namespace("model", "revision", "float16", "layout")
TOKENS, SHARED = 4096, 2048
AGENTS = [f"agent-{number}" for number in range(8)]
T = TypeVar("T")

_random = random.Random(0)


def run(arguments: argparse.Namespace) -> Report:
    quick: bool = arguments.quick
    sequences, samples = (512, 200) if quick else (4096, 1000)
    cache = make_cache((sequences + 2 * samples + 1) * full_blocks(TOKENS))
    prompts = list(_prompts(sequences))
    for number, prompt in enumerate(prompts):
        insert(cache, prompt, f"workflow-{number}")
    root, known = cache.tree.root(SPACE), _random.choices(prompts, k=samples)
    halves = [prompt[: SHARED * TOKEN_BYTES] + _tokens(TOKENS - SHARED) for prompt in known]
    announced = make_cache((samples + 2) * full_blocks(TOKENS), on_change=lambda label, residency: None)
    insert(announced, prompts[0], "workflow")
    numbers = itertools.count()
    figures = [
        _micros("match 4,096 tokens", lambda prompt: cache.tree.match(root, prompt), known, 15),
        _micros("match the 2,048 that are shared", lambda prompt: cache.tree.match(root, prompt), halves, 15),
        _micros("insert into the tree, half of it new", lambda prompt: _insert_in_tree(cache, prompt), _prompts(samples), 30),
        _micros(
            "insert through the cache: open, grow, commit, close",
            lambda prompt: insert(cache, prompt, f"new-{next(numbers)}"),
            _prompts(samples),
            30,
        ),
        _micros(
            "the same with a listener, so that blocks are hashed",
            lambda prompt: insert(announced, prompt, f"new-{next(numbers)}"),
            _prompts(samples),
        ),
        _micros("hash 4,096 tokens", lambda prompt: block_keys(SPACE, prompt), known[:200]),
    ]
    sizes = (1_000, 10_000) if quick else (1_000, 10_000, 100_000)
    figures += [_evictions(leaves, demote, min(samples, leaves // 2)) for demote in (False, True) for leaves in sizes]
    figures += [_rekeying(10_000, samples), *_steps(samples), *_decision_log(samples)]
    figures += [_bytes_a_block(64 if quick else 256, guard) for guard in (False, True)]
    figures += cluster_index.figures(quick)
    return Report(
        "index",
        f"{sequences:,} sequences of {TOKENS:,} tokens sharing {SHARED:,}, an owner each; {samples} samples",
        tuple(figures),
    )


def make_cache(
    gpu_blocks: int, host_blocks: int = 0, on_change: ChangeListener | None = None, guard: bool = False, policy: str = "lru"
) -> KVCache:
    capacity = {Tier.GPU: gpu_blocks, Tier.HOST: host_blocks}
    config = CacheConfig(policy=policy, guard=guard)
    return factory.make_cache(capacity, config, NullTransferEngine(), SystemClock(), on_change)


def insert(cache: KVCache, prompt: bytes, workflow: str) -> None:
    """The calls that the engine makes to the cache for one sequence."""
    handle = cache.open(StepIdentity(SPACE, workflow, AGENTS[0], 0, count(prompt)), prompt)
    assert handle is not None
    assert cache.grow(handle, count(prompt))
    cache.commit(handle, prompt)
    cache.close(handle)


def _insert_in_tree(cache: KVCache, prompt: bytes) -> None:
    match = cache.tree.match(cache.tree.root(SPACE), prompt)
    slots = cache.tiers.pools[0].take(full_blocks(count(prompt)) - match.blocks)
    cache.tree.add_child(match.path[-1], prompt[match.blocks * BLOCK_BYTES :], slots, output=False)


def _evictions(leaves: int, demote: bool, samples: int) -> Figure:
    """Evicts `samples` leaves of one block each from a full pool."""
    cache = make_cache(leaves + 3, leaves if demote else 0)
    stem = _tokens(BLOCK_TOKENS)
    for number in range(leaves):
        insert(cache, stem + _tokens(BLOCK_TOKENS), f"workflow-{number // 4}")
    cache.tiers.take(cache.tiers.pools[0].free_slots)
    where = "to the host tier" if demote else "and drop it"
    return _micros(f"evict one victim of {leaves:,} {where}", lambda _: cache.tiers.take(1), range(samples), 30)


def _rekeying(leaves: int, samples: int) -> Figure:
    """Applies forecasts to workflows with 32 leaves each."""
    each = 32
    cache = make_cache(2 * leaves + 3, policy="pbkv-paper")
    stem = _tokens(BLOCK_TOKENS)
    for number in range(leaves):
        insert(cache, stem + _tokens(BLOCK_TOKENS), f"workflow-{number // each}")
    workflows = [owner.id for owner in cache.workflows.all() if len(owner.nodes) > each]
    steps = tuple(StepForecast({agent: 1 / len(AGENTS) for agent in AGENTS}, 0.9) for _ in range(3))
    forecasts = [Forecast(_random.choice(workflows), epoch, 0.0, steps) for epoch in range(1, samples + 1)]
    figure = _micros("", cache.apply, forecasts)
    return Figure(f"re-key a leaf of {leaves:,} after a forecast", figure.value / each, figure.unit)


def _steps(samples: int) -> Iterator[Figure]:
    """What policy and guard add to a step in a full cache, where every step has to evict and 32 workflows are active."""
    active, length, resident = 32, 8, 64  # workflows, steps of each, sequences that fit in the cache
    variants = {"lru": ("lru", False), "pbkv": ("pbkv", False), "pbkv and the guard": ("pbkv", True)}
    caches = {
        name: make_cache(resident * full_blocks(TOKENS - SHARED) + 256, guard=guard, policy=policy)
        for name, (policy, guard) in variants.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in variants}
    warm = active * length
    for number, prompt in enumerate(_prompts(warm + samples)):
        age, lane = divmod(number, active)
        workflow = f"workflow-{lane}-{(age + lane) // length}"
        for name, cache in caches.items():
            if (age + lane) % length == 0 and age + lane:
                cache.retire(f"workflow-{lane}-{(age + lane) // length - 1}")
            taken[name].append(seconds(partial(insert, cache, prompt, workflow)))
    alone, policy, both = (1e6 * median(times[warm:]) for times in taken.values())
    yield Figure("step in a full cache, policy lru", alone, "µs")
    yield Figure("the same under pbkv: what it adds, an active workflow", (policy - alone) / active, "µs", at_most=150)
    yield Figure("what the guard adds to a step under pbkv", both - policy, "µs")


def _decision_log(samples: int) -> Iterator[Figure]:
    """What the log of decisions adds to a step in a full cache with a host tier, where every step evicts from both."""
    resident = 16 * full_blocks(TOKENS - SHARED) + 256
    caches = {
        name: factory.make_cache(
            {Tier.GPU: resident, Tier.HOST: resident},
            CacheConfig(policy="pbkv", guard=True),
            NullTransferEngine(),
            SystemClock(),
            lambda label, residency: None,  # as in a cluster, so blocks are hashed in both
            log=DecisionLog(SystemClock(), max_bytes),
        )
        for name, max_bytes in (("without", 0), ("with", CacheConfig().decision_log_bytes))
    }
    taken: dict[str, list[float]] = {name: [] for name in caches}
    warm = 256
    for number, prompt in enumerate(_prompts(warm + samples)):
        for name in (list(caches), list(caches)[::-1])[number % 2]:  # the second finds the prompt in the processor's cache
            start = thread_time()
            insert(caches[name], prompt, f"workflow-{number % 32}")
            taken[name].append(thread_time() - start)
    without, with_log = (median(times[warm:]) for times in taken.values())
    yield Figure(
        "bookkeeping of a step with the decision log, over without (processor time)", with_log / without, "x", at_most=1.02
    )


def _bytes_a_block(sequences: int, guard: bool) -> Figure:
    prompts = list(_prompts(sequences))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    # Any policy but `lru` has shadows. `pbkv` would add a table of fixed size and the records of its workflows.
    cache = make_cache(
        (sequences + 1) * full_blocks(TOKENS) - sequences * full_blocks(SHARED) + 1, guard=guard, policy="pbkv-paper"
    )
    for number, prompt in enumerate(prompts):
        insert(cache, prompt, f"workflow-{number}")
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    name = "bookkeeping of a block, the pool's included" + (", with a guard" if guard else "")
    return Figure(name, (after - before) / sum(cache.tree.held), "bytes", at_most=300)


def _micros(name: str, run: Callable[[T], object], over: Iterable[T], at_most: float | None = None) -> Figure:
    taken = []
    for each in over:
        start = perf_counter()
        run(each)
        taken.append(perf_counter() - start)
    return Figure(name, median(taken) * 1e6, "µs", at_most=at_most)


def _prompts(number: int) -> Iterator[bytes]:
    """Sequences that share their first half, also with those of earlier calls."""
    stem = random.Random(1).randbytes(SHARED * TOKEN_BYTES)
    for _ in range(number):
        yield stem + _tokens(TOKENS - SHARED)


def _tokens(number: int) -> bytes:
    return _random.randbytes(number * TOKEN_BYTES)
