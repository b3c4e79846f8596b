"""Runs of one workload with bounded memory: LRU, `pbkv`, and a policy that knows the future, at some sizes of the tiers."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import NamedTuple

from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Workload

LRU, PBKV, CLAIRVOYANT = "lru", "pbkv", "clairvoyant"
POLICIES = (LRU, PBKV, CLAIRVOYANT)


class Size(NamedTuple):
    """Sizes of the tiers, in blocks."""

    gpu_blocks: int
    host_blocks: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run came to. Seconds of a workflow are without the pauses between its steps."""

    policy: str
    size: Size
    recomputed_tokens: int  # computed, though an infinite cache would have had them
    available_tokens: int
    ttft_mean_s: float
    ttft_p90_s: float
    latency_mean_s: float
    latency_p90_s: float
    prefill_share: float  # of the time of workflows, with their pauses
    recomputed_by_agent: dict[tuple[str, str], int]  # by workload and agent


def sizes(context_blocks: int, largest_blocks: int, shares: Sequence[float], host_ratios: Sequence[float]) -> list[Size]:
    """The sizes to run, each once.

    Args:
        context_blocks: of the contexts of open workflows.
        largest_blocks: of the largest step, which must fit on the GPU.
        shares: GPU memory over these contexts.
        host_ratios: host memory over GPU memory.
    """
    gpus = dict.fromkeys(max(largest_blocks + 1, 8, round(share * context_blocks)) for share in shares)
    return [Size(gpu, round(ratio * gpu)) for ratio in dict.fromkeys(host_ratios) for gpu in gpus]


def sweep(
    tokens: TokenSource,
    setup: Setup,
    wanted: Sequence[Size],
    jobs: int,
    on_run: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Runs every policy at every size.

    Args:
        tokens: the workload.
        setup: everything else; its capacities and policy are ignored.
        wanted: the sizes.
        jobs: processes that run at a time; 1: this one alone.
        on_run: called after each of `2 * len(wanted)` parts.

    Returns:
        The outcomes, by size in the order given, then in the order of `POLICIES`.
    """
    parts = [(size, policy) for policy in (PBKV, LRU) for size in wanted]  # the longest first
    found: dict[tuple[Size, str], Outcome] = {}
    for outcomes in _in_processes(tokens.workload, setup, parts, jobs) if jobs > 1 else _here(tokens, setup, parts):
        found.update({(each.size, each.policy): each for each in outcomes})
        on_run()
    return [found[size, policy] for size in wanted for policy in POLICIES]


def _here(tokens: TokenSource, setup: Setup, parts: Sequence[tuple[Size, str]]) -> Iterator[list[Outcome]]:
    for size, policy in parts:
        yield _run(tokens, setup, size, policy)


def _in_processes(workload: Workload, setup: Setup, parts: Sequence[tuple[Size, str]], jobs: int) -> Iterator[list[Outcome]]:
    # Not by fork: this process may have threads.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _prepare, (workload, setup)) as pool:
        for future in as_completed([pool.submit(_run_prepared, size, policy) for size, policy in parts]):
            yield future.result()


class _Prepared(NamedTuple):
    tokens: TokenSource
    setup: Setup


_prepared: list[_Prepared] = []  # of this process


def _prepare(workload: Workload, setup: Setup) -> None:
    _prepared.append(_Prepared(TokenSource(workload), setup))


def _run_prepared(size: Size, policy: str) -> list[Outcome]:
    (each,) = _prepared
    return _run(each.tokens, each.setup, size, policy)


def _run(tokens: TokenSource, setup: Setup, size: Size, policy: str) -> list[Outcome]:
    """One run; after LRU's, that of the policy which knows the future, whose order of steps is LRU's."""
    sized = replace(setup, gpu_blocks=size.gpu_blocks, host_blocks=size.host_blocks)
    if policy == PBKV:
        cache = setup.cache.model_copy(update={"policy": PBKV})
        return [_outcome(tokens, size, PBKV, simulate(tokens, replace(sized, policy=PBKV, cache=cache)))]
    # LRU in all tiers, as a cache without us would be.
    plain = replace(sized, cache=setup.cache.model_copy(update={"policy": LRU, "host_policy": LRU, "prefetch": "none"}))
    lru = simulate(tokens, replace(plain, policy=LRU))
    oracle = simulate(tokens, replace(plain, policy="oracle"), lru)
    return [_outcome(tokens, size, LRU, lru), _outcome(tokens, size, CLAIRVOYANT, oracle)]


def _outcome(tokens: TokenSource, size: Size, policy: str, result: SimulationResult) -> Outcome:
    assert result.ttft is not None, "a workload has at least one step"
    assert result.latency is not None
    by_agent: Counter[tuple[str, str]] = Counter()
    for record in result.steps:
        workflow = tokens.workload.arrivals[record.arrival].workflow
        by_agent[workflow.workload, workflow.steps[record.position].agent] += record.recomputed_tokens
    return Outcome(
        policy,
        size,
        result.recomputed_tokens,
        result.meter.available_tokens,
        result.ttft.mean,
        result.ttft.p90,
        result.latency.mean,
        result.latency.p90,
        result.time.shares()["prefill"],
        dict(by_agent),
    )
