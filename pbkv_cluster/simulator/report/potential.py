"""What an infinite cache would save: the bound for every other. One run in which everything fits on the GPU tells it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pbkv_cluster.core.tokens import BLOCK_TOKENS, count
from pbkv_cluster.simulator.engine.result import SimulationResult
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.workload.token_source import TokenSource


@dataclass(frozen=True, slots=True)
class AgentPotential:
    """Of one agent's prompts, what an infinite cache would have had."""

    workload: str
    agent: str
    steps: int
    prompt_tokens: int
    own_tokens: int  # from steps of the same workflow
    other_tokens: int  # beyond that, from other workflows

    @property
    def available_tokens(self) -> int:
        return self.own_tokens + self.other_tokens


@dataclass(frozen=True, slots=True)
class Potential:
    """What could be saved at all."""

    agents: tuple[AgentPotential, ...]  # those with the most available tokens first
    prompt_tokens: int
    available_tokens: int
    prefill_s: float  # of all prompts, by the cost model, if nothing is cached
    saved_s: float  # of that, at most
    ttft_mean_s: float  # with an infinite cache
    latency_mean_s: float  # of a workflow without its pauses, likewise
    prefill_share: float  # of the time of workflows with an infinite cache, pauses included
    context_blocks: int  # at the peak, of the latest context of every agent of every open workflow, shared ones once
    open_workflows: int  # at that moment
    largest_blocks: int  # of one step
    distinct_blocks: int  # of the whole run


def potential(tokens: TokenSource, setup: Setup) -> Potential:
    """Runs a workload once with a cache that holds everything.

    Args:
        tokens: the workload.
        setup: everything else; its capacities and policy are ignored.
    """
    largest, distinct = tokens.blocks()
    room = distinct + largest * min(len(tokens.workload.arrivals), setup.engine.max_running) + 1
    result = simulate(tokens, replace(setup, policy="lru", gpu_blocks=room, host_blocks=0))
    agents = _agents(tokens, result)
    prefill_s, saved_s = _seconds(tokens, result, setup)
    blocks, workflows = max(_open_contexts(tokens, result), default=(0, 0))
    assert result.ttft is not None, "a workload has at least one step"
    assert result.latency is not None
    return Potential(
        agents=tuple(sorted(agents, key=lambda each: (-each.available_tokens, -each.prompt_tokens))),
        prompt_tokens=sum(each.prompt_tokens for each in agents),
        available_tokens=sum(each.available_tokens for each in agents),
        prefill_s=prefill_s,
        saved_s=saved_s,
        ttft_mean_s=result.ttft.mean,
        latency_mean_s=result.latency.mean,
        prefill_share=result.time.shares()["prefill"],
        context_blocks=blocks,
        open_workflows=workflows,
        largest_blocks=largest,
        distinct_blocks=distinct,
    )


def _agents(tokens: TokenSource, result: SimulationResult) -> list[AgentPotential]:
    seen: defaultdict[int, set[bytes]] = defaultdict(set)  # blocks of each workflow's steps so far
    sums: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for record in result.steps:
        workflow = tokens.workload.arrivals[record.arrival].workflow
        step = tokens.step(record.arrival, record.position)
        known = seen[record.arrival]
        own = next((at for at, key in enumerate(step.prompt_keys) if key not in known), len(step.prompt_keys)) * BLOCK_TOKENS
        own = min(own, record.available_tokens)
        known.update(step.keys)
        total = sums[workflow.workload, workflow.steps[record.position].agent]
        for at, value in enumerate((1, count(step.prompt), own, record.available_tokens - own)):
            total[at] += value
    return [AgentPotential(*site, *total) for site, total in sums.items()]


def _seconds(tokens: TokenSource, result: SimulationResult, setup: Setup) -> tuple[float, float]:
    """Seconds of prefill without any cache, and those that an infinite one saves."""
    whole = saved = 0.0
    for record in result.steps:
        prompt = count(tokens.step(record.arrival, record.position).prompt)
        whole += setup.cost.prefill_seconds(0, prompt)
        saved += setup.cost.prefill_seconds(0, record.available_tokens)
    return whole, saved


def _open_contexts(tokens: TokenSource, result: SimulationResult) -> Iterator[tuple[int, int]]:
    """After each step, the blocks of the latest contexts of all agents of open workflows, and the number of these workflows."""
    used: Counter[bytes] = Counter()
    contexts: defaultdict[int, dict[str, list[bytes]]] = defaultdict(dict)
    for record in result.steps:
        workflow = tokens.workload.arrivals[record.arrival].workflow
        agent = workflow.steps[record.position].agent
        keys = tokens.step(record.arrival, record.position).keys
        _release(used, contexts[record.arrival].get(agent, []))
        contexts[record.arrival][agent] = keys
        used.update(keys)
        yield len(used), len(contexts)
        if record.position + 1 == len(workflow.steps):
            for each in contexts.pop(record.arrival).values():
                _release(used, each)


def _release(used: Counter[bytes], keys: list[bytes]) -> None:
    for key in keys:
        used[key] -= 1
        if not used[key]:
            del used[key]
