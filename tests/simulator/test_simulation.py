"""Properties of simulated runs."""

from dataclasses import replace

import pytest

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.observer import Hits
from pbkv_cluster.cache.policies.lru import Lru, RetiredLru
from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.simulator.engine.cost_model import CostModel
from pbkv_cluster.simulator.engine.engine import SimulatedEngine
from pbkv_cluster.simulator.engine.result import SimulationResult, StepRecord
from pbkv_cluster.simulator.engine.simulation import Setup, simulate
from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow
from pbkv_cluster.simulator.workload.generator import Sizes, generate
from pbkv_cluster.simulator.workload.prompts import PromptBuilder
from pbkv_cluster.simulator.workload.token_source import TokenSource
from pbkv_cluster.simulator.workload.workload import Mix, make_workload
from tests.simulator.simulated import one_by_one, source, trace, workload_of

POLICIES = ["lru", "retired-lru", "pbkv-paper", "pbkv"]


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_seeds_give_equal_runs(policy: str) -> None:
    setup = Setup(60, 60, policy, noise=0.5, seed=3)
    assert simulate(source(seed=1), setup) == simulate(source(seed=1), setup)


def test_noise_and_adversary_change_what_is_kept() -> None:
    plain = simulate(source(24), Setup(60, 0, "pbkv-paper"))
    noisy = simulate(source(24), Setup(60, 0, "pbkv-paper", noise=1.0))
    against = simulate(source(24), Setup(60, 0, "pbkv-paper", adversary=True))
    assert plain.steps != noisy.steps
    assert against.hit_gpu < plain.hit_gpu


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("gpu", "host"), [(48, 0), (64, 120), (400, 0)])
def test_counts_are_consistent(policy: str, gpu: int, host: int, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = SimulatedEngine.advance

    def checked(engine: SimulatedEngine, until: float) -> list[Output]:
        outputs = advance(engine, until)
        engine.cache.check_integrity()
        assert engine.cache.used_blocks(Tier.GPU) <= gpu
        assert engine.cache.used_blocks(Tier.HOST) <= host
        return outputs

    monkeypatch.setattr(SimulatedEngine, "advance", checked)
    tokens = source(12)
    result = simulate(tokens, Setup(gpu, host, policy))
    meter = result.meter
    delivered, captured = sum(meter.delivered.values()), sum(meter.captured.values())
    assert delivered <= captured <= meter.available_tokens <= meter.prompt_tokens
    if result.preemptions == 0:
        assert meter.computed_tokens + delivered == meter.prompt_tokens
    assert meter.steps == sum(len(arrival.workflow.steps) for arrival in tokens.workload.arrivals)
    assert all(record.submitted_at <= record.started_at < record.ended_at for record in result.steps)


def test_nothing_is_lost_without_pressure() -> None:
    result = simulate(source(12), Setup(5000))
    assert result.meter.delivered == {Tier.GPU: result.meter.available_tokens}
    assert not result.decisions["drop"]


def test_a_host_tier_restores_what_the_gpu_evicted() -> None:
    without, beside = simulate(source(24), Setup(60)), simulate(source(24), Setup(60, 600))
    assert beside.decisions["load"] > 0
    assert beside.hit_any > without.hit_any


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("workers", [1, 2])
def test_no_policy_looks_ahead(policy: str, workers: int) -> None:
    first_difference(Setup(60, 0, policy, workers=workers))


def first_difference(setup: Setup) -> None:
    """A run whose later steps are altered is the same until the first altered step is submitted."""
    workflows = trace(16).workflows
    plain = simulate(workload_of(workflows, 4, 0.05), setup)
    altered = simulate(workload_of([_altered(workflow) for workflow in workflows], 4, 0.05), setup)

    def first_altered(records: tuple[StepRecord, ...]) -> float:
        return min(record.submitted_at for record in records if record.position >= len(workflows[record.arrival].steps) // 2)

    until = first_altered(plain.steps)
    assert until == first_altered(altered.steps)
    before = [record for record in plain.steps if record.ended_at <= until]
    assert before == [record for record in altered.steps if record.ended_at <= until]
    assert before
    assert plain.steps != altered.steps


def _altered(workflow: TraceWorkflow) -> TraceWorkflow:
    middle = len(workflow.steps) // 2
    others = [
        replace(step, agent="another", output_tokens=step.output_tokens + 40, prompt=step.prompt[::-1])
        for step in workflow.steps[middle:]
    ]
    return replace(workflow, steps=(*workflow.steps[:middle], *others))


def _hits(result: SimulationResult) -> Hits:
    hits = Hits()
    hits.add(result.meter.delivered)
    return hits


def test_a_shadow_hits_what_the_cache_hits_under_the_same_policy() -> None:
    """Else a guard would fall back from policies as good as LRU. The policy is LRU by its path, which gets a guard."""
    long_outputs = Sizes(preamble=32, system=96, task=48, output=400, tool_result=64)
    workflows = list(generate(40, 3, long_outputs, max_steps=10))
    result = simulate(workload_of(workflows, concurrency=12, pause_s=1.0), Setup(1500, 700, f"{Lru.__module__}:{Lru.__name__}"))
    guard = result.guard
    assert guard is not None
    assert guard.evicted_by_policy > 1000
    assert guard.hits.tokens == pytest.approx(guard.lru_hits.tokens, rel=0.01)
    assert guard.switches == 0


@pytest.mark.parametrize("policy", ["retired-lru", "pbkv-paper", "pbkv"])
@pytest.mark.parametrize("adversary", [False, True])
def test_the_guard_counts_what_runs(policy: str, adversary: bool) -> None:
    result = simulate(source(24), Setup(60, 60, policy, adversary))
    assert result.guard is not None
    assert result.guard.prompt_tokens == result.meter.prompt_tokens
    assert result.guard.hits == _hits(result)
    evicted = result.decisions["evict_active"] + result.decisions["evict_retired"]
    assert result.guard.evicted_by_lru + result.guard.evicted_by_policy == evicted > 0
    assert result.guard.switches == result.decisions["guard_fall_back"] + result.decisions["guard_recover"]


@pytest.mark.parametrize("host_blocks", [0, 60])
@pytest.mark.parametrize("policy", ["retired-lru", "pbkv-paper", "pbkv"])
def test_shadows_tell_what_each_policy_would_have_hit(policy: str, host_blocks: int) -> None:
    """The counts are exact if steps run one after the other."""
    tokens = source(24, concurrency=1)
    guarded, lru = simulate(tokens, Setup(60, host_blocks, policy)), simulate(tokens, Setup(60, host_blocks))
    alone = simulate(tokens, Setup(60, host_blocks, policy, cache=CacheConfig(guard=False)))
    assert guarded.guard is not None
    assert guarded.guard.lru_hits == _hits(lru)
    assert guarded.guard.policy_hits == _hits(alone)
    assert (lru.meter.delivered.get(Tier.HOST, 0) > 0) == (host_blocks > 0)
    assert lru.guard is alone.guard is None


def test_the_guard_stops_an_adversary() -> None:
    tokens = source(60)
    # Steps that find more cached do not go first: that alone would spare an adversary the half of its loss.
    engine = EngineConfig(order="arrival")
    lru = simulate(tokens, Setup(90, 60, engine=engine))
    guarded, alone = (
        simulate(tokens, Setup(90, 60, "lru", adversary=True, engine=engine, cache=CacheConfig(guard=guard)))
        for guard in (True, False)
    )
    assert guarded.guard is not None
    assert guarded.guard.switches == 1
    assert guarded.guard.saved_s < 0
    assert guarded.hit_any >= 0.88 * lru.hit_any
    assert alone.hit_any <= 0.8 * lru.hit_any


def test_forecasts_that_no_policy_uses_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    without = simulate(source(24), Setup(60, 0, "retired-lru"))
    monkeypatch.setattr(RetiredLru, "uses_forecasts", True)
    assert simulate(source(24), Setup(60, 0, "retired-lru")) == without


def test_the_cache_is_told_when_announced_tool_calls_start_and_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, list[tuple[ToolCall, bool]]] = {}

    def tool_call(cache: KVCache, workflow: str, call: ToolCall, started: bool) -> None:
        told.setdefault(workflow, []).append((call, started))

    mix = Mix(concurrency=6, think_scale=0.02, announce_sigma=0.5)
    tokens = TokenSource(make_workload([trace(12)], mix, 0), PromptBuilder())
    monkeypatch.setattr(KVCache, "tool_call", tool_call)
    simulate(tokens, Setup(60))
    for arrival in tokens.workload.arrivals:
        assert arrival.tool_calls
        assert told[arrival.id] == [(call, started) for call in arrival.tool_calls for started in (True, False)]


def test_announced_durations_give_hits_to_a_policy_that_uses_them() -> None:
    def hits(policy: str, sigma: float | None) -> int:
        mix = Mix(workflows=80, concurrency=16, think_scale=8.0, announce_sigma=sigma)
        return _hits(simulate(TokenSource(make_workload([trace(80)], mix, 0), PromptBuilder()), Setup(300, 0, policy))).tokens

    assert hits("pbkv", 0.0) > 1.02 * hits("pbkv", None)
    assert hits("lru", 0.0) == hits("lru", None)


def test_a_step_that_can_never_fit_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="prompt"):
        simulate(one_by_one("ABCD"), Setup(10))


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(InvalidArgument, match="nonsense"):
        simulate(one_by_one("A"), Setup(10, policy="nonsense"))


def test_copies_beside_compute_delay_decodes_less() -> None:
    tokens, slow = source(24, think_scale=0.1), CostModel(host_bytes_per_s=6e9)
    waits, beside = (simulate(tokens, Setup(60, 600, cost=replace(slow, copy_delay=delay))) for delay in (1.0, 0.1))
    for result in (waits, beside):
        assert result.decisions["load"] > 0
        assert result.time.load_s > 0
    assert beside.time.decode_s < waits.time.decode_s, "decodes are delayed by the copies for others"
