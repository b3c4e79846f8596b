"""One run in virtual time: the real engine, scheduler, cache, policies and predictor, driven by a workload.

Nothing here decides anything that a worker would decide. A step's prompt exists only once the step before it has ended, so a
policy sees what it would see in service; the oracle apart.
"""

import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from pbkv_cluster.cache.observer import GuardStat
from pbkv_cluster.core.access_log import StepLog
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig, PredictorConfig
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import BLOCK_TOKENS, count
from pbkv_cluster.core.usage import HitMeter, Tier, Usage
from pbkv_cluster.gpu_worker.engine.engine import Output
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest
from pbkv_cluster.reuse.model.access_model import AccessModel
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.engine import SimulatedEngine
from pbkv_cluster.simulator.engine.forecasting import Forecaster
from pbkv_cluster.simulator.engine.runner import SimulatedRunner
from pbkv_cluster.simulator.evaluation.adversary import adversary_of
from pbkv_cluster.simulator.evaluation.oracle import Future, knowing
from pbkv_cluster.simulator.replay.report import Spread
from pbkv_cluster.simulator.workload.events import event_of, no_pieces
from pbkv_cluster.simulator.workload.token_source import NAMESPACE, TokenSource

_UNBOUNDED = 1 << 30  # steps in the queue: a simulated client is never refused


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated, apart from the workload."""

    gpu_blocks: int
    host_blocks: int = 0
    policy: str = "lru"
    adversary: bool = False  # negate the policy's values
    noise: float = 0.0  # share of forecasts that are random
    seed: int = 0  # of the noise
    predictor_state: bytes | None = None  # what it has learnt before
    access: AccessModel | None = None  # what has been learnt before of how workflows use their blocks; it stays as it is
    cost: CostModel = field(default_factory=CostModel)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What became of one step. Times are seconds since the run's start."""

    arrival: int
    position: int
    submitted_at: float
    started_at: float  # it was admitted
    ended_at: float
    delivered: tuple[tuple[Tier, int], ...]


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """One run."""

    meter: HitMeter
    ttft: Spread | None  # submission to first token, by step
    latency: Spread | None  # by workflow: the sum over its steps of submission to last token, without the pauses between
    decisions: Counter[str]
    preemptions: int
    guard: GuardStat | None  # None: the policy had none
    steps: tuple[StepRecord, ...]  # in the order in which they ended
    seconds: float

    @property
    def hit_gpu(self) -> float:
        """Share of the prompt tokens that was found on the GPU."""
        return self.meter.delivered_rate(Tier.GPU) or 0.0

    @property
    def hit_any(self) -> float:
        """Share of the prompt tokens that was found in some tier."""
        return self.meter.delivered_rate() or 0.0


@dataclass(slots=True)
class _Running:
    arrival: int
    position: int = 0
    submitted_at: float = 0.0
    served_s: float = 0.0
    available_tokens: int = 0


def simulate(tokens: TokenSource, setup: Setup, reference: SimulationResult | None = None) -> SimulationResult:
    """Runs a workload to its end.

    Args:
        tokens: the workload with its tokens.
        setup: the rest.
        reference: a run of the same workload that tells the oracle in which order steps begin; needed for that policy only.

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
        self._future = None if reference is None else Future(_begins(tokens, reference), runner.started)
        name = adversary_of(setup.policy) if setup.adversary else setup.policy
        self._cuts = setup.policy == "oracle"
        guarded = setup.cache.guard and not self._cuts  # the oracle is what others are measured against
        self._engine: SimulatedEngine
        with ExitStack() as stack:
            if self._future is not None:
                stack.enter_context(knowing(self._future))
            self._engine = SimulatedEngine(
                runner,
                setup.engine.model_copy(update={"allow_forced_output": True, "max_waiting": _UNBOUNDED}),
                setup.cache.model_copy(update={"policy": name, "guard": guarded}),
                self._clock,
            )
        if self._engine.cache.workflows.learns:
            self._learner = AccessModel()
            if setup.access is not None:
                known = setup.access.export()
                self._learner.apply(known)
                self._engine.cache.workflows.learnt(known)
            self._engine.cache.workflows.on_ended = self._learn
        self._heeds = self._engine.cache.workflows.heeds_forecasts
        self._forecaster = Forecaster(
            setup.predictor,
            self._clock,
            self._engine.cache.apply,
            setup.predictor_state,
            setup.noise,
            setup.seed,
            self._heeds,
        )
        self._timers: list[tuple[float, int, _Running]] = []
        self._timed = 0
        self._next = 0
        self._active: dict[str, _Running] = {}
        self._known: set[bytes] = set()  # keys of all blocks ever computed
        self._meter = HitMeter()
        self._ttfts: list[float] = []
        self._latencies: list[float] = []
        self._records: list[StepRecord] = []
        self._preemptions = 0

    def run(self) -> SimulationResult:
        if self._workload.concurrency:
            for _ in range(self._workload.concurrency):
                self._begin_next()
        else:
            for number, arrival in enumerate(self._workload.arrivals):
                self._at(arrival.starts_at or 0.0, _Running(number))
        while self._engine.busy or self._timers:
            if not self._engine.busy:
                self._clock.advance(max(0.0, self._timers[0][0] - self._clock.now()))
            while self._timers and self._timers[0][0] <= self._clock.now():
                self._submit(heapq.heappop(self._timers)[2])
            for output in self._engine.advance(self._timers[0][0] if self._timers else float("inf")):
                self._ended(output)
        return SimulationResult(
            self._meter,
            Spread.of(self._ttfts),
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
        if self._next < len(self._workload.arrivals):
            self._next += 1
            self._submit(_Running(self._next - 1))

    def _at(self, time: float, running: _Running) -> None:
        self._timed += 1
        heapq.heappush(self._timers, (time, self._timed, running))

    def _submit(self, running: _Running) -> None:
        arrival = self._workload.arrivals[running.arrival]
        if running.position == 0:
            self._report(running, 0)
        step = arrival.workflow.steps[running.position]
        tokens = self._tokens.step(running.arrival, running.position)
        self._report(running, 2 * running.position + 1)
        running.submitted_at = self._clock.now()
        # A key names all before it, so what is known comes first.
        known = bisect_left(tokens.prompt_keys, True, key=lambda key: key not in self._known)
        running.available_tokens = known * BLOCK_TOKENS
        name = _step_id(running.arrival, running.position)
        self._active[name] = running
        sampling = SamplingParams(max_tokens=count(tokens.output), forced_output=tokens.output)
        self._engine.submit(StepRequest(name, arrival.id, step.agent, running.position, NAMESPACE, tokens.prompt, sampling))

    def _report(self, running: _Running, number: int) -> None:
        arrival = self._workload.arrivals[running.arrival]
        pieces = partial(self._tokens.pieces, running.arrival) if self._heeds else no_pieces
        self._forecaster.happened(event_of(arrival.workflow, arrival.id, number, self._clock.wall(), pieces))

    def _ended(self, output: Output) -> None:
        running = self._active.pop(output.request_id)
        tokens = self._tokens.step(running.arrival, running.position)
        assert output.usage is not None
        self._account(running, output.usage)
        self._known.update(tokens.keys[running.available_tokens // BLOCK_TOKENS :])
        if self._cuts and self._future is not None:
            self._future.cut(self._engine.cache, tokens.prompt + tokens.output)
        self._report(running, 2 * running.position + 2)
        arrival = self._workload.arrivals[running.arrival]
        pause = arrival.pauses[running.position]
        running.position += 1
        if running.position < len(arrival.workflow.steps):
            self._at(self._clock.now() + pause, running)
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
        self._ttfts.append(usage.ttft_s)
        self._preemptions += usage.preemptions
        started = running.submitted_at + usage.queue_s
        delivered = tuple(sorted(usage.delivered.items()))
        self._records.append(StepRecord(running.arrival, running.position, running.submitted_at, started, now, delivered))


def _step_id(arrival: int, position: int) -> str:
    return f"{arrival}/{position}"


def _begins(tokens: TokenSource, reference: SimulationResult) -> list[tuple[float, str, list[bytes]]]:
    return [
        (record.started_at, _step_id(record.arrival, record.position), tokens.step(record.arrival, record.position).prompt_keys)
        for record in reference.steps
    ]
