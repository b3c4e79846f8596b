"""One run of a workload in virtual time, on the real engine, scheduler, cache, policies and predictor.

This module makes none of a worker's decisions. It submits a step's prompt only once the workflow's step before has ended, so
every policy but the oracle sees what it would see in service.
"""

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig, PredictorConfig
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count
from pbkv_cluster.core.usage import HitMeter, Usage
from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.gpu_worker.engine.engine import Output
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest
from pbkv_cluster.reuse.model.access_model import AccessModel
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.engine import SimulatedEngine
from pbkv_cluster.simulator.engine.result import SimulationResult, StepRecord, TimeSplit
from pbkv_cluster.simulator.engine.runner import SimulatedRunner
from pbkv_cluster.simulator.policies.adversary import adversary_of
from pbkv_cluster.simulator.policies.oracle import FutureUses, oracle_knows
from pbkv_cluster.simulator.prediction.forecaster import Forecaster
from pbkv_cluster.simulator.spread import Spread
from pbkv_cluster.simulator.workload.events import event_of, no_pieces
from pbkv_cluster.simulator.workload.token_source import NAMESPACE, TokenSource

_UNBOUNDED = 1 << 30  # steps in the queue: the simulation never refuses a client


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated, apart from the workload."""

    gpu_blocks: int
    host_blocks: int = 0
    policy: str = "lru"
    adversary: bool = False  # negate the policy's values
    noise: float = 0.0  # share of the forecasts that are random
    seed: int = 0  # of the noise
    predictor_state: bytes | None = None  # of a predictor that was trained before the run
    access: AccessModel | None = None  # trained before the run, which learns on in a copy
    cost: CostModel = field(default_factory=CostModel)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)


@dataclass(slots=True)
class _Running:
    """An open workflow: its present step, and the time that its steps have taken so far."""

    arrival: int
    position: int = 0
    submitted_at: float = 0.0
    served_s: float = 0.0
    available_tokens: int = 0


def simulate(tokens: TokenSource, setup: Setup, reference: SimulationResult | None = None) -> SimulationResult:
    """Runs a workload to its end.

    Args:
        tokens: the workload with its tokens.
        setup: everything else.
        reference: an earlier run of the same workload. The oracle, and no other policy, needs it for the order of steps.

    Raises:
        InvalidArgument: an unknown policy or predictor, or a step that does not fit in the GPU's blocks.
        FailedPrecondition: the policy is the oracle, and there is no reference.
    """
    return _Simulation(tokens, setup, reference).run()


class _Simulation:
    def __init__(self, tokens: TokenSource, setup: Setup, reference: SimulationResult | None) -> None:
        self._tokens = tokens
        self._workload = tokens.workload
        self._clock = ManualClock()
        runner = SimulatedRunner(setup.gpu_blocks, setup.host_blocks, setup.cost, self._clock)
        self._future = None if reference is None else FutureUses(_step_starts(tokens, reference), runner.started)
        name = adversary_of(setup.policy) if setup.adversary else setup.policy
        self._is_oracle = setup.policy == "oracle"
        cache = setup.cache.model_copy(update={"policy": name})
        if self._is_oracle:  # in all tiers, and itself: others are measured against it
            cache = cache.model_copy(update={"host_policy": name, "guard": False})
        self._engine: SimulatedEngine
        with ExitStack() as stack:
            if self._future is not None:
                stack.enter_context(oracle_knows(self._future))
            self._engine = SimulatedEngine(
                runner,
                setup.engine.model_copy(update={"allow_forced_output": True, "max_waiting": _UNBOUNDED}),
                cache,
                self._clock,
            )
        if self._engine.cache.workflows.learns:
            self._learner = AccessModel()
            if setup.access is not None:
                known = setup.access.export()
                self._learner.apply(known)
                self._engine.cache.workflows.learnt(known)
            self._engine.cache.workflows.on_ended = self._learn
        self._uses_forecasts = self._engine.cache.workflows.uses_forecasts
        self._forecaster = Forecaster(
            setup.predictor,
            self._clock,
            self._engine.cache.apply,
            setup.predictor_state,
            setup.noise,
            setup.seed,
            self._uses_forecasts,
        )
        self._timers: list[tuple[float, int, _Running]] = []  # heap: when a step is submitted; the number settles ties
        self._timers_set = 0
        self._arrived = 0
        self._active: dict[str, _Running] = {}  # by the id of the step in the engine
        self._computed: set[bytes] = set()  # keys of all blocks that steps have filled
        self._meter = HitMeter()
        self._time = TimeSplit()
        self._ttfts: list[float] = []
        self._totals: list[float] = []
        self._latencies: list[float] = []
        self._records: list[StepRecord] = []
        self._preemptions = 0

    def run(self) -> SimulationResult:
        if self._workload.concurrency:
            for _ in range(self._workload.concurrency):
                self._begin_next()
        else:
            for number, arrival in enumerate(self._workload.arrivals):
                self._submit_at(arrival.starts_at or 0.0, _Running(number))
        while self._engine.busy or self._timers:
            if not self._engine.busy:
                self._clock.advance(max(0.0, self._timers[0][0] - self._clock.now()))
            while self._timers and self._timers[0][0] <= self._clock.now():
                self._submit(heapq.heappop(self._timers)[2])
            for output in self._engine.advance(self._timers[0][0] if self._timers else float("inf")):
                self._ended(output)
        return SimulationResult(
            self._meter,
            self._time,
            Spread.of(self._ttfts),
            Spread.of(self._totals),
            Spread.of(self._latencies),
            self._engine.cache.tiers.decisions + self._engine.scheduler.decisions,
            self._preemptions,
            self._engine.cache.guard(),
            tuple(self._records),
            self._clock.now(),
        )

    def _learn(self, workflow: str, steps: Sequence[StepLog]) -> None:
        self._engine.cache.workflows.learnt(self._learner.export(self._learner.learn(steps)))

    def _begin_next(self) -> None:
        if self._arrived < len(self._workload.arrivals):
            self._arrived += 1
            self._submit(_Running(self._arrived - 1))

    def _submit_at(self, time: float, running: _Running) -> None:
        self._timers_set += 1
        heapq.heappush(self._timers, (time, self._timers_set, running))

    def _submit(self, running: _Running) -> None:
        arrival = self._workload.arrivals[running.arrival]
        if running.position == 0:
            self._report(running, 0)
        else:
            self._announce(running, started=False)
        step = arrival.workflow.steps[running.position]
        tokens = self._tokens.step(running.arrival, running.position)
        self._report(running, 2 * running.position + 1)
        running.submitted_at = self._clock.now()
        # A key covers all tokens before it, so the blocks that were computed before come first.
        available = bisect_left(tokens.prompt_keys, True, key=lambda key: key not in self._computed)
        running.available_tokens = available * BLOCK_TOKENS
        name = _step_id(running.arrival, running.position)
        self._active[name] = running
        sampling = SamplingParams(max_tokens=count(tokens.output), forced_output=tokens.output)
        self._engine.submit(StepRequest(name, arrival.id, step.agent, running.position, NAMESPACE, tokens.prompt, sampling))

    def _report(self, running: _Running, number: int) -> None:
        """Tells the predictor event `number` of a workflow; see `event_of`."""
        arrival = self._workload.arrivals[running.arrival]
        pieces = partial(self._tokens.pieces, running.arrival) if self._uses_forecasts else no_pieces
        self._forecaster.report(event_of(arrival.workflow, arrival.id, number, self._clock.wall(), pieces))

    def _announce(self, running: _Running, started: bool) -> None:
        """Tells the cache that the tool call before a workflow's present step has started, or finished."""
        arrival = self._workload.arrivals[running.arrival]
        for call in arrival.tool_calls[running.position - 1 : running.position]:
            self._engine.cache.tool_call(arrival.id, call, started)

    def _ended(self, output: Output) -> None:
        running = self._active.pop(output.request_id)
        tokens = self._tokens.step(running.arrival, running.position)
        assert output.usage is not None
        self._account(running, output.usage)
        self._computed.update(tokens.keys[running.available_tokens // BLOCK_TOKENS :])
        if self._is_oracle and self._future is not None:
            self._future.split(self._engine.cache, tokens.prompt + tokens.output)
        self._report(running, 2 * running.position + 2)
        arrival = self._workload.arrivals[running.arrival]
        pause = arrival.pauses[running.position]
        running.position += 1
        if running.position < len(arrival.workflow.steps):
            self._announce(running, started=True)
            self._time.tool_s += pause
            self._submit_at(self._clock.now() + pause, running)
            return
        self._latencies.append(running.served_s)
        self._report(running, 2 * running.position + 1)
        self._engine.cache.retire(arrival.id)
        if self._workload.concurrency:
            self._begin_next()

    def _account(self, running: _Running, usage: Usage) -> None:
        now = self._clock.now()
        usage.available_tokens = running.available_tokens
        usage.settle()
        usage.total_s = now - running.submitted_at
        usage.ttft_s = usage.total_s - usage.decode_s
        running.served_s += usage.total_s
        self._meter.add(usage)
        self._time.add(usage)
        self._ttfts.append(usage.ttft_s)
        self._totals.append(usage.total_s)
        self._preemptions += usage.preemptions
        started = running.submitted_at + usage.queue_s
        delivered = tuple(sorted(usage.delivered.items()))
        self._records.append(StepRecord(running.arrival, running.position, running.submitted_at, started, now, delivered))


def _step_id(arrival: int, position: int) -> str:
    return f"{arrival}/{position}"


def _step_starts(tokens: TokenSource, reference: SimulationResult) -> list[tuple[float, str, list[bytes]]]:
    return [
        (record.started_at, _step_id(record.arrival, record.position), tokens.step(record.arrival, record.position).prompt_keys)
        for record in reference.steps
    ]
