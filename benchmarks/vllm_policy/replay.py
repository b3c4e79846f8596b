"""Plays a workload against vLLM's `CPUOffloadingManager`, in virtual time, making the calls that vLLM's scheduler makes.

The GPU keeps nothing between requests: all that is reused comes from the CPU tier. Chunks are single blocks of 16 tokens.
"""

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext, make_offload_key
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager

from benchmarks.vllm_policy.timed_policy import TimedPolicy
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.integrations.vllm_policy.request import PARAMETER
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.workload.token_source import TokenSource

_OURS = "benchmarks.vllm_policy.timed_policy"


@dataclass(frozen=True, slots=True)
class Told:
    """What requests say of their workflows."""

    names: bool = True  # workflow, agent and workload
    ends: bool = True  # the last request says that it is that


@dataclass(slots=True)
class Replayed:
    """What a replay has counted."""

    prompt_tokens: int = 0
    hit_tokens: int = 0
    refused: int = 0  # requests of which the tier took nothing, since it had no room
    seconds: float = 0.0  # of one core, spent in the manager, without learning
    requests: int = 0
    guard_switches: int = 0
    lru_tokens: int = 0  # that the guard's shadow of LRU would have hit


def replay(source: TokenSource, capacity: int, policy: str, told: Told) -> Replayed:
    """Plays a closed loop.

    Args:
        source: the workload's tokens.
        capacity: chunks of the tier.
        policy: `lru` or `arc` of vLLM, or `pbkv`.
        told: by requests.
    """
    clock = TimedPolicy.time = ManualClock()
    if policy == "pbkv":
        manager = CPUOffloadingManager(capacity, "TimedPolicy", _OURS)
    else:
        manager = CPUOffloadingManager(capacity, policy)
    found = Replayed()
    for at, request in _requests(source, manager, told, found):
        clock.advance_to(at)
        began = time.thread_time()
        request()
        found.seconds += time.thread_time() - began
    if policy == "pbkv":
        found.seconds -= TimedPolicy.learner.seconds
        stat = manager._policy.advisor.reference.guard()
        if stat is not None:
            found.guard_switches, found.lru_tokens = stat.switches, stat.lru_hits.tokens
    return found


class _Request:
    """One step of a workflow: as it begins, and as it ends."""

    def __init__(
        self, manager: CPUOffloadingManager, name: str, keys: list[bytes], prompt: int, params: dict[str, Any]
    ) -> None:
        self._manager = manager
        self._context = ReqContext(name, kv_transfer_params=params)
        self._keys = [make_offload_key(key, 0) for key in keys]
        self._prompt = self._keys[:prompt]

    def begin(self, found: Replayed) -> int:
        """Returns the tokens that the tier has."""
        manager, context = self._manager, self._context
        self._place(self._prompt)
        manager.on_new_request(context)
        hits = list[OffloadKey]()
        for key in self._prompt:
            if manager.lookup(key, context) is not LookupResult.HIT:
                break
            hits.append(key)
        if hits:
            manager.prepare_load(hits, context)
            manager.complete_load(hits, context)
        stored = manager.prepare_store(self._prompt, context)
        if stored is None:
            found.refused += 1
        elif stored.keys_to_store:
            manager.complete_store(stored.keys_to_store, context)
        found.requests += 1
        found.hit_tokens += len(hits) * BLOCK_TOKENS
        return len(hits) * BLOCK_TOKENS

    def end(self) -> None:
        self._place(self._keys)
        self._manager.on_request_finished(self._context)

    def _place(self, keys: list[OffloadKey]) -> None:
        for number, key in enumerate(keys, 1):
            self._context.set_offload_key_position(key, number * BLOCK_TOKENS)


def _requests(source: TokenSource, manager: CPUOffloadingManager, told: Told, found: Replayed) -> Iterator[tuple[float, Any]]:
    """The beginnings and ends of all requests, each to be called at its time before the next is taken."""
    cost, arrivals, numbers = CostModel(), source.workload.arrivals, count()
    waiting = iter(range(len(arrivals)))
    due: list[tuple[float, int, int, int, _Request | None]] = []  # time, order, arrival, step, None: it begins
    for _, arrival in zip(range(source.workload.concurrency), waiting, strict=False):
        heapq.heappush(due, (0.0, next(numbers), arrival, 0, None))
    while due:
        now, _, arrival, position, running = heapq.heappop(due)
        entry = arrivals[arrival]
        steps = entry.workflow.steps
        if running is None:
            step, tokens = steps[position], source.step(arrival, position)
            params: dict[str, Any] = {}
            if told.names:
                own = {"workflow": entry.id, "agent": step.agent, "workload": entry.workflow.workload}
                params[PARAMETER] = {**own, "final": told.ends and position == len(steps) - 1}
            prompt = len(tokens.prompt_keys)
            request = _Request(manager, f"{entry.id}/{position}", tokens.keys, prompt, params)
            delivered = list[int]()
            yield now, lambda request=request, delivered=delivered: delivered.append(request.begin(found))
            size = len(tokens.prompt) // 4
            found.prompt_tokens += size
            took = cost.prefill_seconds(delivered[0], size - delivered[0])
            took += len(tokens.output) // 4 * cost.decode_seconds(1, size)
            heapq.heappush(due, (now + took, next(numbers), arrival, position, request))
            continue
        yield now, running.end
        if position + 1 < len(steps):
            heapq.heappush(due, (now + entry.pauses[position], next(numbers), arrival, position + 1, None))
        elif (following := next(waiting, None)) is not None:
            heapq.heappush(due, (now, next(numbers), following, 0, None))
