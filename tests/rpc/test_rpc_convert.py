"""Values survive the wire, and malformed messages are refused with the name of the field."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.sampling import MAX_STOP_STRINGS, SamplingParams
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.core.workflow.step_graph import Join, StepGraph, StepNode
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.v1 import predictor_pb2, types_pb2

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NAME = TEXT.filter(bool)
INT64 = st.integers(0, 2**63 - 1)
INT32 = st.integers(0, 2**31 - 1)
UINT32 = st.integers(0, 2**32 - 1)
SECONDS = st.floats(0, allow_infinity=False)
SHARE = st.floats(0, 1, width=32)  # a float on the wire has 32 bits
TIERS = st.dictionaries(st.sampled_from(Tier), INT64)

USAGES = st.builds(
    Usage,
    prompt_tokens=INT64,
    available_tokens=INT64,
    captured=TIERS,
    delivered=TIERS,
    computed_tokens=INT64,
    generated_tokens=INT64,
    queue_s=SECONDS,
    load_s=SECONDS,
    prefill_s=SECONDS,
    decode_s=SECONDS,
    ttft_s=SECONDS,
    total_s=SECONDS,
    preemptions=INT32,
    retries=INT32,
    worker_id=TEXT,
)


def _graphs(names: list[str]) -> st.SearchStrategy[StepGraph]:
    before = st.lists(st.sampled_from(names), unique=True).map(tuple)
    return st.tuples(*(st.builds(StepNode, st.just(name), before, st.sampled_from(Join)) for name in names)).map(StepGraph)


GRAPHS = st.lists(NAME, min_size=1, max_size=5, unique=True).flatmap(_graphs)
EVENTS = st.builds(
    WorkflowEvent,
    kind=st.sampled_from(EventKind),
    workflow=NAME,
    sequence=INT64,
    time=SECONDS,
    workload=TEXT,
    agent=TEXT,
    call_site=TEXT,
    step=INT32,
    parent_step=st.none() | INT32,
    tool=TEXT,
    expected_s=st.none() | SECONDS,
    prompt_tokens=INT64,
    output_tokens=INT64,
    pieces=st.lists(UINT32, max_size=5).map(tuple),
    words=st.lists(UINT32, max_size=5).map(tuple),
    hidden=st.binary(max_size=8),
    graph=st.none() | GRAPHS,
)
STEPS = st.builds(StepForecast, agents=st.dictionaries(TEXT, SHARE, max_size=5), survival=SHARE)
FORECASTS = st.builds(
    Forecast,
    workflow=NAME,
    epoch=st.integers(0, 2**64 - 1),
    made_at=SECONDS,
    steps=st.lists(STEPS, max_size=4).map(tuple),
    predictability=SHARE,
    ended=st.booleans(),
)
SAMPLINGS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 2**31 - 1),
    temperature=st.floats(0, 100, width=32),
    top_p=st.floats(0, 1, width=32, exclude_min=True),
    seed=st.integers(0, 2**64 - 1),
    stop=st.lists(NAME, max_size=MAX_STOP_STRINGS).map(tuple),
    ignore_eos=st.booleans(),
    forced_output=st.none() | st.lists(INT32, min_size=1, max_size=8).map(pack),
)


@given(USAGES)
def test_usage(usage: Usage) -> None:
    message = types_pb2.Usage.FromString(convert.usage_to_wire(usage).SerializeToString())
    assert convert.usage_from_wire(message) == usage


@given(EVENTS)
def test_events(event: WorkflowEvent) -> None:
    message = predictor_pb2.WorkflowEvent.FromString(convert.event_to_wire(event).SerializeToString())
    assert convert.event_from_wire(message) == event


@given(st.lists(FORECASTS, max_size=4), st.booleans())
def test_forecasts(forecasts: list[Forecast], snapshot: bool) -> None:
    message = convert.forecasts_to_wire(Forecasts.of(forecasts), snapshot)
    batch = predictor_pb2.ForecastBatch.FromString(message.SerializeToString())
    assert list(convert.forecasts_from_wire(batch)) == forecasts
    assert batch.snapshot == snapshot
    assert len(set(batch.agents)) == len(batch.agents)


@given(SAMPLINGS)
def test_sampling(params: SamplingParams) -> None:
    message = types_pb2.Sampling.FromString(convert.sampling_to_wire(params).SerializeToString())
    assert convert.sampling_from_wire(message) == params


@given(GRAPHS)
def test_step_graphs(graph: StepGraph) -> None:
    message = types_pb2.StepGraph.FromString(convert.step_graph_to_wire(graph).SerializeToString())
    assert convert.step_graph_from_wire(message) == graph


def test_a_join_that_is_left_out_is_an_and_join() -> None:
    message = types_pb2.StepGraph(nodes=[types_pb2.StepGraph.Node(agent_id="a")])
    assert convert.step_graph_from_wire(message).nodes[0].join is Join.AND


@pytest.mark.parametrize("tier", Tier)
def test_tiers(tier: Tier) -> None:
    assert convert.tier_from_wire(convert.tier_to_wire(tier)) is tier
    assert types_pb2.Tier.Name(convert.tier_to_wire(tier)) == f"TIER_{tier.name}"


@pytest.mark.parametrize("kind", EventKind)
def test_kinds_of_events_keep_their_names(kind: EventKind) -> None:
    message = convert.event_to_wire(WorkflowEvent(kind, "w", 0, 0.0))
    assert predictor_pb2.EventKind.Name(message.kind) == f"EVENT_KIND_{kind.name}"


def test_no_kind_or_tier_of_the_wire_is_left_out() -> None:
    assert len(EventKind) == len(predictor_pb2.EventKind.values()) - 1
    assert len(Tier) == len(types_pb2.Tier.values()) - 1


def test_an_unknown_tier_has_no_value() -> None:
    with pytest.raises(KeyError):
        convert.tier_from_wire(types_pb2.TIER_UNSPECIFIED)


def test_empty_sampling_takes_the_defaults_and_draws_a_seed() -> None:
    drawn = [convert.sampling_from_wire(types_pb2.Sampling()) for _ in range(4)]
    assert {replace(params, seed=0) for params in drawn} == {SamplingParams()}
    assert len({params.seed for params in drawn}) > 1


def test_zero_is_not_unset() -> None:
    assert convert.sampling_from_wire(types_pb2.Sampling(seed=0)).seed == 0
    event = WorkflowEvent(EventKind.STEP_STARTED, "w", 0, 0.0, parent_step=0, expected_s=0.0)
    assert convert.event_from_wire(convert.event_to_wire(event)) == event


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (types_pb2.Sampling(max_tokens=0), "sampling.max_tokens"),
        (types_pb2.Sampling(max_tokens=-1), "sampling.max_tokens"),
        (types_pb2.Sampling(temperature=-1.0), "sampling.temperature"),
        (types_pb2.Sampling(temperature=float("nan")), "sampling.temperature"),
        (types_pb2.Sampling(top_p=0.0), "sampling.top_p"),
        (types_pb2.Sampling(top_p=float("nan")), "sampling.top_p"),
        (types_pb2.Sampling(top_p=1.5), "sampling.top_p"),
        (types_pb2.Sampling(stop=[""]), "sampling.stop"),
        (types_pb2.Sampling(stop=["x"] * (MAX_STOP_STRINGS + 1)), "sampling.stop"),
        (types_pb2.Sampling(forced_output=types_pb2.PackedTokens()), "sampling.forced_output"),
        (types_pb2.Sampling(forced_output=types_pb2.PackedTokens(data=b"abc")), "sampling.forced_output.data"),
    ],
)
def test_invalid_sampling_is_refused_with_the_field(message: types_pb2.Sampling, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.sampling_from_wire(message)
    assert caught.value.field == field


@pytest.mark.parametrize("size", [1, 2, 3, 65])
def test_incomplete_tokens_are_refused_with_the_field(size: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"^prompt\.token_ids\.data: {size} bytes") as caught:
        convert.packed_from_wire(types_pb2.PackedTokens(data=bytes(size)), "prompt.token_ids")
    assert caught.value.field == "prompt.token_ids.data"


def test_whole_tokens_pass_unchanged() -> None:
    assert convert.packed_from_wire(types_pb2.PackedTokens(data=pack([1, 2])), "prompt.token_ids") == pack([1, 2])


def test_malformed_events_are_refused_with_the_field() -> None:
    unknown = predictor_pb2.WorkflowEvent.FromString(b"\x08\x63\x12\x01w")  # kind 99, which a newer sender may know
    for message in (predictor_pb2.WorkflowEvent(workflow_id="w"), unknown):
        with pytest.raises(InvalidArgument, match="is not a kind of event") as caught:
            convert.event_from_wire(message)
        assert caught.value.field == "events.kind"
    with pytest.raises(InvalidArgument) as caught:
        convert.event_from_wire(predictor_pb2.WorkflowEvent(kind=predictor_pb2.EVENT_KIND_STEP_STARTED))
    assert caught.value.field == "events.workflow_id"
    empty_graph = predictor_pb2.WorkflowEvent(
        kind=predictor_pb2.EVENT_KIND_WORKFLOW_STARTED, workflow_id="w", step_graph=types_pb2.StepGraph()
    )
    with pytest.raises(InvalidArgument, match=r"^events\.step_graph\.nodes: from 1 to") as caught:
        convert.event_from_wire(empty_graph)
    assert caught.value.field == "events.step_graph.nodes"


@pytest.mark.parametrize("column", [field.name for field in predictor_pb2.ForecastBatch.DESCRIPTOR.fields][3:])
def test_a_column_of_forecasts_that_is_too_short_or_too_long_is_named(column: str) -> None:
    step = StepForecast({"a": 0.25, "b": 0.5}, 0.75)
    for longer in (True, False):
        batch = convert.forecasts_to_wire(Forecasts.of([Forecast("w", 1, 0.0, (step, step)), Forecast("v", 1, 0.0, (step,))]))
        values = getattr(batch, column)
        values.append(values[0]) if longer else values.pop()
        with pytest.raises(InvalidArgument, match=r"forecasts\.\w+: must have \d+ entries in this batch, got \d+"):
            convert.forecasts_from_wire(batch)


@pytest.mark.parametrize("position", [1, 2**31 + 5, 2**32 - 2, 2**32 - 1])
def test_an_agent_that_a_batch_does_not_name_is_refused(position: int) -> None:
    batch = convert.forecasts_to_wire(Forecasts.of([Forecast("w", 1, 0.0, (StepForecast({"a": 1.0}, 1.0),))]))
    batch.agent_positions[0] = position
    with pytest.raises(InvalidArgument, match="none of the 1 agents") as caught:
        convert.forecasts_from_wire(batch)
    assert caught.value.field == "forecasts.agent_positions"


def test_counts_of_steps_beyond_all_bounds_are_refused() -> None:
    step = StepForecast({"a": 1.0}, 1.0)
    batch = convert.forecasts_to_wire(Forecasts.of([Forecast(name, 1, 0.0, (step,)) for name in "vw"]))
    batch.step_counts[:] = [2**32 - 1, 3]
    with pytest.raises(InvalidArgument, match="entries in this batch"):
        convert.forecasts_from_wire(batch)


def test_a_name_is_sent_once() -> None:
    step = StepForecast({"a": 0.5, "b": 0.5}, 1.0)
    batch = convert.forecasts_to_wire(Forecasts.of([Forecast(f"w{n}", 1, 0.0, (step, step)) for n in range(3)]))
    assert list(batch.agents) == ["a", "b"]
