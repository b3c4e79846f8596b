"""Which worker runs a step: the one where it should finish first. Pure functions without state.

One currency, seconds: the prefill that a worker's cached prefix saves the step, and that the contexts which lie there will save
the workflow's next steps, less the wait in its queue, and less what the workflow will push out of a memory that others need.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gateway.decisions import Reason
from pbkv_cluster.gateway.routing.load import WorkerLoad
from pbkv_cluster.gateway.routing.speeds import LoadingCost, StepSpeed
from pbkv_cluster.store.block_map import WorkerKey

# Of a token that another step is computing there: on average half of them are still to come, and have to be waited for.
PENDING_TOKEN_VALUE = 0.5
# Probability that a context of the workflow is read again, where it lies, by one of its next steps.
REUSE_PROBABILITY = 0.5
# Of a token that is computed although another worker has it: the second copy takes the room of another token.
DUPLICATE_TOKEN_COST = 0.25
# Tokens of other workflows that are computed again for each of the workflow's own, where the own tokens of the other open
# workflows fill the worker's memory once; half as many if they fill half of it. One that begins stays for all of its steps.
PUSHED_OUT_BY_NEW = 4.0
PUSHED_OUT = 0.5
# Memory that is full once cannot be fuller: of more, much has been evicted already.
MAX_PRESSURE = 1.0
# The index lags behind the workers by its flush interval, so the worker that served the workflow last holds more than the
# index shows: about the end of the last prompt and its output.
AFFINITY_TOKENS = 32


class RoutedWorker(Protocol):
    """A worker that steps can go to."""

    @property
    def key(self) -> WorkerKey: ...
    @property
    def steps(self) -> WorkerLoad: ...
    @property
    def speed(self) -> StepSpeed: ...
    @property
    def loading(self) -> LoadingCost: ...
    @property
    def memory_tokens(self) -> int:
        """That its GPU and its host memory hold; 0: not known."""
        ...


class KnownContexts(NamedTuple):
    """What is known of the contexts of open workflows when a step of one of them is placed. All in tokens."""

    of_workflow: Mapping[WorkerKey, int] = {}  # of the workflow's other contexts, by the worker where they lie
    own: int = 0  # that are the workflow's own; before its first step, that will be
    others: Mapping[WorkerKey, int] = {}  # that are or will be other workflows' own, by worker


class CachedTokens(NamedTuple):
    """How much of a prompt a worker need not compute: first what it has cached itself, fastest tier first."""

    gpu: int
    host: int = 0
    disk: int = 0
    sibling: int = 0  # after these, in the host memory of other workers of its node, if it reads them
    remote: int = 0  # after these, in the host memory of other nodes, if it reads them

    @property
    def own(self) -> int:
        """Tokens that it has cached itself."""
        return self.gpu + self.host + self.disk

    @property
    def all(self) -> int:
        return self.own + self.sibling + self.remote


class Candidate(NamedTuple):
    """What a choice has to know of a worker."""

    worker_id: str
    cached: CachedTokens  # of the prompt, without what it would rather compute than load
    pending_tokens: int  # after what it has cached or can copy; another step is computing them there
    queued_tokens: int  # that the steps of this gateway still have to compute and generate there
    token_s: float | None  # mean seconds of recent steps there, for each token; None: no step has ended there yet
    served_last: bool  # it ran this workflow's latest step
    context_tokens: int = 0  # of other contexts of the workflow, which lie there
    duplicate_tokens: int = 0  # of the prompt, that another worker has cached and this one would compute or copy
    loading_tokens: float = 0.0  # that it could compute while it loads what is not on its GPU
    pushed_out_tokens: float = 0.0  # of other workflows, which will be computed again if this one goes on there

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that it need not compute: it has or can load them, or another step is computing them there."""
        return self.cached.all + self.pending_tokens


class Costs(NamedTuple):
    """What tokens and queues cost."""

    seconds_per_token: float  # of prefill
    parallelism: int  # steps that a worker runs at once


class Choice(NamedTuple):
    worker_id: str
    reason: Reason


def candidates(
    workers: Sequence[RoutedWorker],
    cached: Sequence[CachedTokens],
    keys: Sequence[Sequence[bytes]],
    contexts: KnownContexts,
    last: WorkerKey | None,
) -> list[Candidate]:
    """The candidates for a step, one for each worker.

    Args:
        workers: with ids of their own.
        cached: of the prompt, on each worker.
        keys: of the prompt's full blocks, on each worker.
        contexts: where contexts lie.
        last: the worker that ran the workflow's latest step; None: there is none.
    """
    most = max((each.own for each in cached), default=0)
    pressures = _pressures(workers, contexts)
    each_pushes_out = PUSHED_OUT_BY_NEW if last is None else PUSHED_OUT
    paying = [_paying(there, worker.loading) for worker, there in zip(workers, cached, strict=True)]
    return [
        Candidate(
            worker_id=worker.key[0],
            cached=there,
            pending_tokens=max(worker.steps.pending_tokens(theirs) - there.all, 0),
            queued_tokens=worker.steps.tokens,
            token_s=worker.speed.seconds_per_token,
            served_last=worker.key == last,
            context_tokens=contexts.of_workflow.get(worker.key, 0),
            duplicate_tokens=most - own,
            loading_tokens=loading_tokens,
            pushed_out_tokens=each_pushes_out * max(contexts.own, len(theirs) * BLOCK_TOKENS - most) * pressure,
        )
        for worker, own, (there, loading_tokens), theirs, pressure in zip(
            workers, (each.own for each in cached), paying, keys, pressures, strict=True
        )
    ]


def _paying(cached: CachedTokens, loading: LoadingCost) -> tuple[CachedTokens, float]:
    """Without the tokens that a worker would rather compute than load; and what it costs to load the others, in tokens.

    A worker judges what it has itself, and asks others for what follows only if it loads all of that (`cache/sequence`).
    """
    own, own_cost = _worth_loading({Tier.HOST: cached.host, Tier.DISK: cached.disk}, loading)
    if sum(own) < cached.host + cached.disk:
        return CachedTokens(cached.gpu, *own), own_cost
    others, others_cost = _worth_loading({Tier.SIBLING: cached.sibling, Tier.REMOTE: cached.remote}, loading)
    return CachedTokens(cached.gpu, *own, *others), own_cost + others_cost


def _worth_loading(tokens: Mapping[Tier, int], loading: LoadingCost) -> tuple[list[int], float]:
    """What is loaded of tokens that follow each other in these kinds of memory: from as many of the first kinds as are together
    no slower than to compute all of it. And what that costs, in tokens.
    """
    costs = [loading.tokens(tier, some) if some else 0.0 for tier, some in tokens.items()]
    loaded = list(tokens.values())
    while (cost := sum(costs)) > sum(loaded):
        last = max(number for number, some in enumerate(loaded) if some)
        costs[last], loaded[last] = 0.0, 0
    return loaded, cost


def _pressures(workers: Sequence[RoutedWorker], contexts: KnownContexts) -> list[float]:
    """How far the own tokens of other open workflows fill each worker's memory; zeros if it is not known of all."""
    if not all(worker.memory_tokens for worker in workers):
        return [0.0] * len(workers)
    return [min(contexts.others.get(worker.key, 0) / worker.memory_tokens, MAX_PRESSURE) for worker in workers]


def saved_s(candidate: Candidate, costs: Costs) -> float:
    """Seconds of prefill that the worker's cache saves, and others that it can load from, less those of the loads."""
    tokens = candidate.cached.all - candidate.loading_tokens + PENDING_TOKEN_VALUE * candidate.pending_tokens
    return tokens * costs.seconds_per_token


def wait_s(candidate: Candidate, costs: Costs) -> float:
    """Seconds that the step is expected to wait for the steps before it."""
    token_s = costs.seconds_per_token if candidate.token_s is None else candidate.token_s
    return candidate.queued_tokens * token_s / costs.parallelism


def future_s(candidate: Candidate, costs: Costs) -> float:
    """Seconds that the workflow's next steps are expected to save if it goes on there, less what second copies cost others."""
    tokens = REUSE_PROBABILITY * candidate.context_tokens - DUPLICATE_TOKEN_COST * candidate.duplicate_tokens
    return tokens * costs.seconds_per_token


def pushed_out_s(candidate: Candidate, costs: Costs) -> float:
    """Seconds that other workflows are expected to compute again if the workflow goes on there."""
    return candidate.pushed_out_tokens * costs.seconds_per_token


def score(candidate: Candidate, costs: Costs) -> float:
    """Seconds gained by choosing the worker; the highest wins."""
    gained = saved_s(candidate, costs) + future_s(candidate, costs) + _affinity_s(candidate, costs)
    return gained - wait_s(candidate, costs) - pushed_out_s(candidate, costs)


def assume_mean(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, with the mean of the measured ones for those that have not been measured."""
    measured = [each.token_s for each in candidates if each.token_s is not None]
    if not measured or len(measured) == len(candidates):
        return list(candidates)
    mean = sum(measured) / len(measured)
    return [each if each.token_s is not None else each._replace(token_s=mean) for each in candidates]


def choose(candidates: Sequence[Candidate], costs: Costs) -> Choice:
    """The worker with the best score; among equals the least loaded, then the first by id.

    A worker where no step has ended yet is taken to be as fast as the others on average.

    Raises:
        ValueError: there are no candidates.
    """
    candidates = assume_mean(candidates)
    best = min(candidates, key=lambda each: (-score(each, costs), each.queued_tokens, each.worker_id))
    if len(candidates) == 1:
        return Choice(best.worker_id, Reason.ROUTE_ONLY_WORKER)
    if max(saved_s(each, costs) for each in candidates) > saved_s(best, costs):
        reason = _reason_to_leave_prefix(best, candidates, costs)
    elif best.cached.own:
        reason = Reason.ROUTE_PREFIX
    elif best.cached.sibling:
        reason = Reason.ROUTE_SIBLING_PREFIX
    elif best.cached.remote:
        reason = Reason.ROUTE_REMOTE_PREFIX
    elif best.pending_tokens:
        reason = Reason.ROUTE_PENDING_PREFIX
    elif best.context_tokens and not best.served_last:
        reason = Reason.ROUTE_CONTEXT
    else:
        reason = Reason.ROUTE_AFFINITY if best.served_last else Reason.ROUTE_LEAST_LOADED
    return Choice(best.worker_id, reason)


def _affinity_s(candidate: Candidate, costs: Costs) -> float:
    return AFFINITY_TOKENS * costs.seconds_per_token if candidate.served_last else 0.0


def _reason_to_leave_prefix(best: Candidate, candidates: Sequence[Candidate], costs: Costs) -> Reason:
    """What `best` has most of, over the worker that saves the step more prefill."""
    holder = max(candidates, key=lambda each: saved_s(each, costs))
    gained_s = {
        Reason.ROUTE_QUEUE: wait_s(holder, costs) - wait_s(best, costs),
        Reason.ROUTE_PRESSURE: pushed_out_s(holder, costs) - pushed_out_s(best, costs),
        Reason.ROUTE_CONTEXT: future_s(best, costs) - future_s(holder, costs),
        Reason.ROUTE_AFFINITY: _affinity_s(best, costs) - _affinity_s(holder, costs),
    }
    return max(gained_s, key=lambda reason: gained_s[reason])


def choose_blind(candidates: Sequence[Candidate]) -> Choice:
    """The choice without an index: the worker that served the workflow last, since it has most of the prefix; else the least
    loaded.

    Raises:
        ValueError: there are no candidates.
    """
    best = min(candidates, key=lambda each: (not each.served_last, each.queued_tokens, each.worker_id))
    if len(candidates) == 1:
        return Choice(best.worker_id, Reason.ROUTE_ONLY_WORKER)
    return Choice(best.worker_id, Reason.ROUTE_BLIND_AFFINITY if best.served_last else Reason.ROUTE_BLIND_LEAST_LOADED)
