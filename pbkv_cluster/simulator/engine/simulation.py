"""One run of a workload in virtual time, on the real engines, schedulers, caches, policies, router and predictor.

This module makes none of a cluster's decisions. It submits a step's prompt only once the workflow's step before has ended, so
every policy but the oracle sees what it would see in service.

Each worker has a clock, and the cluster has one. The worker that is furthest behind goes on until something happens that may
concern others: a step is submitted, or may end somewhere. Events are handled when all busy workers have reached their time.
"""

import heapq
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from time import process_time

from pbkv_cluster.cache.tiers.prefetch_ledger import PrefetchCount
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count
from pbkv_cluster.core.usage import HitMeter, Usage
from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest
from pbkv_cluster.predictor_service.access.prior import load_prior
from pbkv_cluster.reuse.model.access_models import AccessModels
from pbkv_cluster.simulator.engine.result import SimulationResult, StepRecord, TimeSplit
from pbkv_cluster.simulator.engine.router import SimulatedRouter
from pbkv_cluster.simulator.engine.setup import Setup
from pbkv_cluster.simulator.engine.teller import SimulatedTeller
from pbkv_cluster.simulator.engine.worker import SimulatedWorker
from pbkv_cluster.simulator.policies.oracle import FutureUses, oracle_knows
from pbkv_cluster.simulator.prediction.forecaster import Forecaster
from pbkv_cluster.simulator.spread import Spread
from pbkv_cluster.simulator.workload.events import event_of, no_pieces
from pbkv_cluster.simulator.workload.token_source import NAMESPACE, TokenSource

__all__ = ["Setup", "simulate"]


@dataclass(slots=True)
class _Running:
    """An open workflow: its present step, and the time that its steps have taken so far."""

    arrival: int
    position: int = 0
    submitted_at: float = 0.0
    served_s: float = 0.0
    available_tokens: int = 0
    worker: SimulatedWorker | None = None  # of its present or last step
    begun_late_s: float = 0.0  # from submission to the end of the batch that its worker was running
    answered: bool = False  # its present step has a first token


def simulate(tokens: TokenSource, setup: Setup, reference: SimulationResult | None = None) -> SimulationResult:
    """Runs a workload to its end.

    Args:
        tokens: the workload with its tokens.
        setup: everything else.
        reference: an earlier run of the same workload. The oracle, and no other policy, needs it for the order of steps.

    Raises:
        InvalidArgument: an unknown policy or predictor, no worker, or a step that does not fit in a worker's blocks.
        FailedPrecondition: the policy is the oracle, and there is no reference.
    """
    if setup.workers < 1:
        raise InvalidArgument("workers", f"must be at least 1, got {setup.workers}")
    return _Simulation(tokens, setup, reference).run()


class _Simulation:
    def __init__(self, tokens: TokenSource, setup: Setup, reference: SimulationResult | None) -> None:
        self._cpu_started = process_time()
        self._tokens = tokens
        self._workload = tokens.workload
        self._clock = ManualClock()
        begun = set[str]()
        self._future = None if reference is None else FutureUses(_step_starts(tokens, reference), begun)
        self._is_oracle = setup.policy == "oracle"
        with ExitStack() as stack:
            if self._future is not None:
                stack.enter_context(oracle_knows(self._future))
            self._workers = [SimulatedWorker(number, setup, begun) for number in range(setup.workers)]
        self._router = SimulatedRouter(self._workers, setup.engine.max_running)
        self._teller = SimulatedTeller(self._workers)
        workflows = self._workers[0].cache.workflows
        if workflows.learns:
            known = AccessModels(load_prior(setup.predictor.prior)) if setup.access is None else setup.access
            self._learner = AccessModels(known.prior)
            for update in (known.prior.export(workload=None, fresh=True), *known.export()):
                if update.workload is not None:
                    self._learner.apply(update)
                for worker in self._workers:
                    worker.cache.workflows.learnt(update)
            for worker in self._workers:
                worker.cache.workflows.on_ended = self._learn
        self._uses_forecasts = workflows.uses_forecasts
        self._forecaster = Forecaster(
            setup.predictor,
            self._clock,
            lambda forecast: [worker.cache.apply(forecast) for worker in self._workers],
            setup.predictor_state,
            setup.noise,
            setup.seed,
            self._uses_forecasts,
        )
        self._events: list[tuple[float, int, Callable[[], None]]] = []  # heap; the number settles ties
        self._events_made = 0
        self._arrived = 0
        self._active: dict[str, _Running] = {}  # by the id of the step in its engine
        self._computed: set[bytes] = set()  # keys of all blocks that steps have filled
        self._meter = HitMeter()
        self._time = TimeSplit()
        self._ttfts: list[float] = []
        self._totals: list[float] = []
        self._latencies: list[float] = []
        self._records: list[StepRecord] = []
        self._preemptions = 0
        self._worker_changes = 0

    def run(self) -> SimulationResult:
        if self._workload.concurrency:
            for _ in range(self._workload.concurrency):
                self._begin_next()
        else:
            for number, arrival in enumerate(self._workload.arrivals):
                self._at(arrival.starts_at or 0.0, partial(self._submit, _Running(number)))
        while True:
            behind = min((each for each in self._workers if each.engine.busy), key=lambda each: each.clock.now(), default=None)
            if self._events and (behind is None or self._events[0][0] <= behind.clock.now()):
                self._happen()
            elif behind is not None:
                self._advance(behind)
            else:
                break
        decisions = Counter[str](self._router.decisions)
        for worker in self._workers:
            decisions += worker.cache.tiers.decisions + worker.engine.scheduler.decisions
        guards = [worker.cache.guard() for worker in self._workers]
        return SimulationResult(
            self._meter,
            self._time,
            Spread.of(self._ttfts),
            Spread.of(self._totals),
            Spread.of(self._latencies),
            decisions,
            self._preemptions,
            self._worker_changes,
            sum((worker.cache.tiers.prefetched.total for worker in self._workers), PrefetchCount()),
            sum((worker.cache.tiers.prefetched.staging.total for worker in self._workers), PrefetchCount()),
            tuple(guard for guard in guards if guard is not None),
            tuple(self._records),
            self._clock.now(),
            process_time() - self._cpu_started,
        )

    def _at(self, time: float, event: Callable[[], None]) -> None:
        self._events_made += 1
        heapq.heappush(self._events, (time, self._events_made, event))

    def _happen(self) -> None:
        time, _, event = heapq.heappop(self._events)
        self._clock.advance_to(time)
        for worker in self._workers:
            worker.idle_until(time)
        event()

    def _advance(self, worker: SimulatedWorker) -> None:
        """Runs a worker until the next event, or until a step may end on another one."""
        until = self._events[0][0] if self._events else math.inf
        for other in self._workers:
            if other is not worker and other.engine.busy:
                until = min(until, other.engine.earliest_end())
        for output in worker.advance(until):
            running = self._active[output.request_id]
            if not running.answered:
                running.answered = True
                self._at(worker.clock.now(), partial(self._answered, running.arrival, running.position))
            if output.finished is not None:
                self._at(worker.clock.now(), partial(self._ended, output))

    def _learn(self, ended: AccessLog) -> None:
        for each in self._learner.learn_own(ended):
            update = self._learner.of(each.workload).export(each.changes, each.workload, each.fresh)
            for worker in self._workers:
                worker.cache.workflows.learnt(update)

    def _begin_next(self) -> None:
        if self._arrived < len(self._workload.arrivals):
            self._arrived += 1
            self._submit(_Running(self._arrived - 1))

    def _submit(self, running: _Running) -> None:
        arrival = self._workload.arrivals[running.arrival]
        if running.position == 0:
            self._report(running, 0)
        else:
            self._announce(running, started=False)
        step = arrival.workflow.steps[running.position]
        tokens = self._tokens.step(running.arrival, running.position)
        self._report(running, 2 * running.position + 1)
        running.submitted_at, running.answered = self._clock.now(), False
        # A key covers all tokens before it, so the blocks that were computed before come first.
        available = bisect_left(tokens.prompt_keys, True, key=lambda key: key not in self._computed)
        running.available_tokens = available * BLOCK_TOKENS
        name = _step_id(running.arrival, running.position)
        self._active[name] = running
        worker = self._router.place(name, tokens, running.worker, arrival.id, step.agent)
        self._worker_changes += running.worker not in (None, worker)
        running.worker = worker
        running.begun_late_s = worker.clock.now() - running.submitted_at
        self._teller.began(arrival.id, running.position, step.agent, tokens.prompt, worker, self._clock.now())
        sampling = SamplingParams(max_tokens=count(tokens.output), forced_output=tokens.output)
        worker.engine.submit(StepRequest(name, arrival.id, step.agent, running.position, NAMESPACE, tokens.prompt, sampling))

    def _report(self, running: _Running, number: int) -> None:
        """Tells the predictor event `number` of a workflow; see `event_of`."""
        arrival = self._workload.arrivals[running.arrival]
        pieces = partial(self._tokens.pieces, running.arrival) if self._uses_forecasts else no_pieces
        self._forecaster.report(event_of(arrival.workflow, arrival.id, number, self._clock.wall(), pieces))

    def _announce(self, running: _Running, started: bool) -> None:
        """Tells the caches that the tool call before a workflow's present step has started, or finished."""
        arrival = self._workload.arrivals[running.arrival]
        for call in arrival.tool_calls[running.position - 1 : running.position]:
            for worker in self._workers:
                worker.cache.tool_call(arrival.id, call, started)

    def _answered(self, arrival: int, position: int) -> None:
        """A step has its first token: its prompt has been computed."""
        self._computed.update(self._tokens.step(arrival, position).prompt_keys)

    def _ended(self, output: Output) -> None:
        running, usage = self._active.pop(output.request_id), output.usage
        assert running.worker is not None
        assert usage is not None
        tokens = self._tokens.step(running.arrival, running.position)
        self._account(running, usage)
        arrival = self._workload.arrivals[running.arrival]
        agent = arrival.workflow.steps[running.position].agent
        self._router.ended(output, running.worker, arrival.id, agent, tokens.keys)
        self._teller.ended(arrival.id, running.position, tokens.output, self._clock.now())
        self._computed.update(tokens.keys[running.available_tokens // BLOCK_TOKENS :])
        if self._is_oracle and self._future is not None:
            for worker in self._workers:
                self._future.split(worker.cache, tokens.prompt + tokens.output)
        self._report(running, 2 * running.position + 2)
        pause = arrival.pauses[running.position]
        running.position += 1
        if running.position < len(arrival.workflow.steps):
            self._announce(running, started=True)
            self._time.tool_s += pause
            self._at(self._clock.now() + pause, partial(self._submit, running))
            return
        self._latencies.append(running.served_s)
        self._report(running, 2 * running.position + 1)
        for worker in self._workers:
            worker.cache.retire(arrival.id)
        self._teller.drop(arrival.id)
        self._router.drop(arrival.id)
        if self._workload.concurrency:
            self._begin_next()

    def _account(self, running: _Running, usage: Usage) -> None:
        now = self._clock.now()
        usage.available_tokens = running.available_tokens
        usage.settle()
        usage.queue_s += running.begun_late_s
        usage.total_s = now - running.submitted_at
        usage.ttft_s = usage.total_s - usage.decode_s
        running.served_s += usage.total_s
        self._meter.add(usage)
        self._time.add(usage)
        self._ttfts.append(usage.ttft_s)
        self._totals.append(usage.total_s)
        self._preemptions += usage.preemptions
        delivered = tuple(sorted(usage.delivered.items()))
        assert running.worker is not None
        where = running.arrival, running.position, running.worker.number
        times = running.submitted_at, running.submitted_at + usage.queue_s, now
        self._records.append(StepRecord(*where, *times, delivered, usage.available_tokens, usage.ttft_s))


def _step_id(arrival: int, position: int) -> str:
    return f"{arrival}/{position}"


def _step_starts(tokens: TokenSource, reference: SimulationResult) -> list[tuple[float, str, list[bytes]]]:
    return [
        (record.started_at, _step_id(record.arrival, record.position), tokens.step(record.arrival, record.position).prompt_keys)
        for record in reference.steps
    ]
