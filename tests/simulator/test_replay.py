"""The closed loop, against a gRPC server that records its calls."""

import asyncio
import json

import pytest

from pbkv_cluster.client import AsyncClient
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.errors import InvalidArgument, NotFound, ResourceExhausted
from pbkv_cluster.core.tokens import count
from pbkv_cluster.core.usage import HitMeter, Tier
from pbkv_cluster.simulator.replay.replay import Replay, ReplayOptions
from pbkv_cluster.simulator.replay.report import Failure, ReplayReport
from pbkv_cluster.simulator.spread import Spread
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow
from pbkv_cluster.simulator.workload.generator import Sizes, generate
from pbkv_cluster.simulator.workload.prompts import PromptBuilder
from tests.polling import eventually
from tests.simulator.recording_gateway import STEP_S, TTFT_S, Call, RecordingGateway, serving

SYSTEM = Segment(SegmentKind.SYSTEM, "system", 10)


def small(name: str, steps: int = 2) -> TraceWorkflow:
    """Steps of 10, 17, 24 … prompt tokens. Each prompt is the last prompt, its reply, and 4 tokens of markup."""
    history = [Segment(SegmentKind.HISTORY, f"{name}/{number}", 7) for number in range(steps)]
    prompts = [(SYSTEM, *history[:number]) for number in range(steps)]
    return TraceWorkflow(
        name, "unit", tuple(TraceStep("coder", prompt, f"{name}/{number}", 3) for number, prompt in enumerate(prompts))
    )


async def replay(
    gateway: RecordingGateway, workflows: list[TraceWorkflow], options: ReplayOptions, prompts: PromptBuilder | None = None
) -> tuple[ReplayReport, list[float]]:
    """The report, and the seconds of each pause."""
    slept: list[float] = []
    clock = ManualClock()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds)

    async with serving(gateway) as address, AsyncClient(address) as client:
        driver = Replay(client, prompts or PromptBuilder(), options, clock=clock, sleep=sleep)
        return await driver.run(workflows), slept


async def test_replays_prompts_and_replies_in_order() -> None:
    gateway, prompts = RecordingGateway(), PromptBuilder(scale=0.5)
    workflows = list(generate(6, seed=2, sizes=Sizes(task=40, output=9), max_steps=8))
    report, _ = await replay(gateway, workflows, ReplayOptions(concurrency=3), prompts)
    assert set(gateway.steps) == {workflow.id for workflow in workflows}
    for workflow in workflows:
        sent = gateway.steps[workflow.id]
        assert [request.agent_id for request in sent] == [step.agent for step in workflow.steps]
        assert [request.prompt.token_ids.data for request in sent] == [prompts.prompt(step) for step in workflow.steps]
        assert [request.sampling.forced_output.data for request in sent] == [prompts.output(step) for step in workflow.steps]
        assert all(request.sampling.max_tokens == count(request.sampling.forced_output.data) for request in sent)
    assert {request.workload for request in gateway.started} == {workflow.workload for workflow in workflows}
    assert (report.completed, report.failures) == (6, ())
    assert report.meter.steps == sum(len(workflow.steps) for workflow in workflows)


async def test_call_sites_and_ids_are_passed_on() -> None:
    gateway = RecordingGateway()
    step = TraceStep("coder", (SYSTEM,), "out", 3, call_site="CodeReview")
    options = ReplayOptions(tenant="acme", id_suffix="#2")
    await replay(gateway, [TraceWorkflow("w", "unit", (step,))], options)
    (request,) = gateway.steps["w#2"]
    assert request.call_site == "CodeReview"
    assert gateway.started[0].tenant == "acme"


async def test_reports_tools_and_waits_scaled_time_between_steps() -> None:
    steps = (
        TraceStep("a", (SYSTEM,), "o1", 1, tool="search", pause_s=4.0),
        TraceStep("b", (SYSTEM,), "o2", 1),
        TraceStep("a", (SYSTEM,), "o3", 1, pause_s=2.0),
        TraceStep("a", (SYSTEM,), "o4", 1, tool="never awaited", pause_s=9.0),
    )
    gateway = RecordingGateway()
    report, slept = await replay(gateway, [TraceWorkflow("w", "unit", steps)], ReplayOptions(time_scale=0.5))
    assert slept == [2.0, 1.0]
    assert gateway.calls["w"] == [
        Call("start"),
        Call("step", "a"),
        Call("tool started", "search"),
        Call("tool finished", "search"),
        Call("step", "b"),
        Call("step", "a"),
        Call("tool started", "tool"),
        Call("tool finished", "tool"),
        Call("step", "a"),
        Call("end"),
    ]
    assert report.workflow_latency == Spread(1, 3.0, 3.0, 3.0, 3.0)
    assert report.wall_s == 3.0


async def test_without_time_scale_tools_are_reported_and_nothing_waits() -> None:
    gateway = RecordingGateway()
    steps = (TraceStep("a", (SYSTEM,), "o1", 1, tool="search", pause_s=4.0), TraceStep("a", (SYSTEM,), "o2", 1, pause_s=2.0))
    _, slept = await replay(gateway, [TraceWorkflow("w", "unit", (*steps, steps[1]))], ReplayOptions())
    assert slept == [0.0]
    assert Call("tool started", "search") in gateway.calls["w"]


async def test_runs_as_many_workflows_at_a_time_as_asked() -> None:
    gateway = RecordingGateway()
    gateway.hold_until = 4
    report, _ = await replay(gateway, [small(f"w{number}") for number in range(10)], ReplayOptions(concurrency=4))
    assert gateway.most_open == 4
    assert report.completed == 10


async def test_an_interrupted_replay_ends_its_workflows() -> None:
    gateway = RecordingGateway()
    gateway.hold_until = 99
    async with serving(gateway) as address, AsyncClient(address) as client:
        workflows = [small(f"w{number}") for number in range(6)]
        run = asyncio.create_task(Replay(client, PromptBuilder(), ReplayOptions(concurrency=3)).run(workflows))
        await eventually(lambda: sum(map(len, gateway.steps.values())) == 3)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert dict(gateway.calls) == {f"w{number}": [Call("start"), Call("step", "coder"), Call("end")] for number in range(3)}


async def test_adds_up_usage() -> None:
    # Prompts of 10, 17 and 24 tokens twice; the second workflow shares the system prompt only.
    report, _ = await replay(RecordingGateway(), [small("a", 3), small("b", 3)], ReplayOptions(concurrency=1))
    available = (0 + 10 + 17) + (10 + 10 + 17)
    delivered = (0 + 5 + 8) + (5 + 5 + 8)
    assert report.meter.prompt_tokens == 102
    assert report.meter.available_tokens == available
    assert report.meter.delivered == {Tier.GPU: delivered}
    assert report.recomputed_tokens == available - delivered
    assert (report.retries, report.preemptions) == (6, 12)
    assert report.ttft == Spread(6, TTFT_S, TTFT_S, TTFT_S, TTFT_S)
    assert report.step_latency == Spread(6, STEP_S, STEP_S, STEP_S, STEP_S)


async def test_a_failed_step_stops_its_workflow_and_no_other() -> None:
    gateway = RecordingGateway()
    gateway.failures["b", "1"] = ResourceExhausted("the queue is full")
    report, _ = await replay(gateway, [small("a", 3), small("b", 3), small("c", 3)], ReplayOptions(concurrency=2))
    assert report.failures == (Failure("b", 1, "the queue is full"),)
    assert report.completed == 2
    assert report.meter.steps == 3 + 1 + 3
    assert [len(gateway.steps[name]) for name in "abc"] == [3, 2, 3]
    assert gateway.calls["b"][-1] == Call("end")
    assert str(report.failures[0]) == "b, step 1: the queue is full"


async def test_workflows_that_cannot_start_or_end_are_failures() -> None:
    gateway = RecordingGateway()
    gateway.failures["a", "start"] = ResourceExhausted("too many workflows")
    gateway.failures["b", "end"] = NotFound("no such workflow")
    report, _ = await replay(gateway, [small("a"), small("b"), small("c")], ReplayOptions(concurrency=1))
    assert report.failures == (
        Failure("a", None, "cannot be started: too many workflows"),
        Failure("b", None, "cannot be ended: no such workflow"),
    )
    assert gateway.steps["a"] == []
    assert str(report.failures[0]) == "a: cannot be started: too many workflows"


async def test_an_answer_that_was_not_forced_is_a_failure() -> None:
    gateway = RecordingGateway()
    gateway.disobedient = True
    report, _ = await replay(gateway, [small("a")], ReplayOptions())
    assert report.failures == (Failure("a", 0, "the server answered 2 tokens other than the 3 forced ones"),)
    assert report.meter == HitMeter()


async def test_the_report_is_json() -> None:
    gateway = RecordingGateway()
    gateway.failures["b", "1"] = NotFound("gone")
    report, _ = await replay(gateway, [small("a", 3), small("b", 3)], ReplayOptions(concurrency=1))
    written = json.loads(json.dumps(report.to_json()))
    assert written["steps"] == 4
    assert written["available_rate"] == pytest.approx(report.meter.available_tokens / report.meter.prompt_tokens)
    assert written["delivered_rate_by_tier"]["gpu"] == written["delivered_rate"]
    assert written["delivered_rate_by_tier"]["host"] == 0
    assert written["ttft"] == {"count": 4, "mean_s": TTFT_S, "p50_s": TTFT_S, "p90_s": TTFT_S, "p95_s": TTFT_S}
    assert written["failures"] == [{"workflow": "b", "step": 1, "error": "gone"}]


async def test_nothing_to_replay_is_an_empty_report() -> None:
    report, _ = await replay(RecordingGateway(), [], ReplayOptions())
    assert (report.meter, report.ttft, report.workflow_latency, report.failures) == (HitMeter(), None, None, ())
    assert json.loads(json.dumps(report.to_json()))["available_rate"] is None


def test_percentiles_are_observed_durations() -> None:
    assert Spread.of(range(1, 101)) == Spread(100, 50.5, 50, 90, 95)
    assert Spread.of([3.0]) == Spread(1, 3.0, 3.0, 3.0, 3.0)
    assert Spread.of([]) is None


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"concurrency": 0}, "concurrency"), ({"time_scale": -1.0}, "time_scale"), ({"time_scale": float("nan")}, "time_scale")],
)
def test_refuses_values_out_of_range(arguments: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        ReplayOptions(**arguments)  # type: ignore[arg-type]
