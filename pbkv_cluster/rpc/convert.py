"""Between the project's values and their messages on the wire."""

from collections.abc import Iterable, Mapping

import numpy as np

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.sampling import SamplingOptions, SamplingParams
from pbkv_cluster.core.step_graph import Join, StepGraph, StepNode
from pbkv_cluster.core.tokens import TOKEN_BYTES
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.rpc.v1 import predictor_pb2, types_pb2

_TIER_TO_WIRE: dict[Tier, types_pb2.Tier] = {
    Tier.GPU: types_pb2.TIER_GPU,
    Tier.HOST: types_pb2.TIER_HOST,
    Tier.REMOTE: types_pb2.TIER_REMOTE,
    Tier.DISK: types_pb2.TIER_DISK,
}
_TIER_FROM_WIRE = {wire: tier for tier, wire in _TIER_TO_WIRE.items()}
_JOIN_TO_WIRE: dict[Join, types_pb2.StepGraph.Join] = {
    Join.AND: types_pb2.StepGraph.JOIN_AND,
    Join.OR: types_pb2.StepGraph.JOIN_OR,
}
_JOIN_FROM_WIRE = {wire: join for join, wire in _JOIN_TO_WIRE.items()} | {types_pb2.StepGraph.JOIN_UNSPECIFIED: Join.AND}
_KIND_TO_WIRE: dict[EventKind, predictor_pb2.EventKind] = {
    EventKind.WORKFLOW_STARTED: predictor_pb2.EVENT_KIND_WORKFLOW_STARTED,
    EventKind.STEP_STARTED: predictor_pb2.EVENT_KIND_STEP_STARTED,
    EventKind.STEP_FINISHED: predictor_pb2.EVENT_KIND_STEP_FINISHED,
    EventKind.STEP_PLACED: predictor_pb2.EVENT_KIND_STEP_PLACED,
    EventKind.TOOL_STARTED: predictor_pb2.EVENT_KIND_TOOL_STARTED,
    EventKind.TOOL_FINISHED: predictor_pb2.EVENT_KIND_TOOL_FINISHED,
    EventKind.WORKFLOW_ENDED: predictor_pb2.EVENT_KIND_WORKFLOW_ENDED,
}
_KIND_FROM_WIRE = {wire: kind for kind, wire in _KIND_TO_WIRE.items()}


def tier_to_wire(tier: Tier) -> types_pb2.Tier:
    return _TIER_TO_WIRE[tier]


def tier_from_wire(tier: types_pb2.Tier) -> Tier:
    """Raises:
    KeyError: a tier that this version does not know.
    """
    return _TIER_FROM_WIRE[tier]


def tiers_to_wire(tokens: Mapping[Tier, int]) -> list[types_pb2.TierTokens]:
    return [types_pb2.TierTokens(tier=_TIER_TO_WIRE[tier], tokens=count) for tier, count in tokens.items()]


def tiers_from_wire(tokens: Iterable[types_pb2.TierTokens]) -> dict[Tier, int]:
    return {_TIER_FROM_WIRE[entry.tier]: entry.tokens for entry in tokens}


def packed_from_wire(message: types_pb2.PackedTokens, field: str) -> bytes:
    """The packed ids of a message.

    Raises:
        InvalidArgument: `field` does not hold whole int32 ids.
    """
    if len(message.data) % TOKEN_BYTES:
        raise InvalidArgument(f"{field}.data", f"{len(message.data)} bytes are not a whole number of int32 token ids")
    return message.data


def usage_to_wire(usage: Usage) -> types_pb2.Usage:
    return types_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        available_tokens=usage.available_tokens,
        captured=tiers_to_wire(usage.captured),
        delivered=tiers_to_wire(usage.delivered),
        computed_tokens=usage.computed_tokens,
        generated_tokens=usage.generated_tokens,
        queue_s=usage.queue_s,
        load_s=usage.load_s,
        prefill_s=usage.prefill_s,
        decode_s=usage.decode_s,
        ttft_s=usage.ttft_s,
        total_s=usage.total_s,
        preemptions=usage.preemptions,
        retries=usage.retries,
        worker_id=usage.worker_id,
    )


def usage_from_wire(message: types_pb2.Usage) -> Usage:
    return Usage(
        prompt_tokens=message.prompt_tokens,
        available_tokens=message.available_tokens,
        captured=tiers_from_wire(message.captured),
        delivered=tiers_from_wire(message.delivered),
        computed_tokens=message.computed_tokens,
        generated_tokens=message.generated_tokens,
        queue_s=message.queue_s,
        load_s=message.load_s,
        prefill_s=message.prefill_s,
        decode_s=message.decode_s,
        ttft_s=message.ttft_s,
        total_s=message.total_s,
        preemptions=message.preemptions,
        retries=message.retries,
        worker_id=message.worker_id,
    )


def sampling_to_wire(params: SamplingParams) -> types_pb2.Sampling:
    return types_pb2.Sampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=params.seed,
        stop=params.stop,
        ignore_eos=params.ignore_eos,
        forced_output=None if params.forced_output is None else types_pb2.PackedTokens(data=params.forced_output),
    )


def sampling_options_from_wire(message: types_pb2.Sampling) -> SamplingOptions:
    """Raises:
    InvalidArgument: the forced output does not hold whole token ids.
    """
    forced = packed_from_wire(message.forced_output, "sampling.forced_output") if message.HasField("forced_output") else None
    return SamplingOptions(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        ignore_eos=message.ignore_eos,
        forced_output=forced,
    )


def sampling_from_wire(message: types_pb2.Sampling) -> SamplingParams:
    """Complete parameters; what the message leaves out takes its default, the seed a random one.

    Raises:
        InvalidArgument: a value is out of its range.
    """
    return sampling_options_from_wire(message).complete()


def step_graph_to_wire(graph: StepGraph) -> types_pb2.StepGraph:
    nodes = [
        types_pb2.StepGraph.Node(agent_id=node.agent, predecessors=node.predecessors, join=_JOIN_TO_WIRE[node.join])
        for node in graph.nodes
    ]
    return types_pb2.StepGraph(nodes=nodes)


def step_graph_from_wire(message: types_pb2.StepGraph) -> StepGraph:
    """Raises:
    InvalidArgument: a kind of join that this version does not know, or the nodes make no graph.
    """
    nodes = []
    for position, node in enumerate(message.nodes):
        join = _JOIN_FROM_WIRE.get(node.join)
        if join is None:
            raise InvalidArgument(f"step_graph.nodes[{position}].join", f"{node.join} is not a kind of join")
        nodes.append(StepNode(node.agent_id, tuple(node.predecessors), join))
    return StepGraph(tuple(nodes))


def event_to_wire(event: WorkflowEvent) -> predictor_pb2.WorkflowEvent:
    return predictor_pb2.WorkflowEvent(
        kind=_KIND_TO_WIRE[event.kind],
        workflow_id=event.workflow,
        sequence=event.sequence,
        time_s=event.time,
        workload=event.workload,
        agent_id=event.agent,
        call_site=event.call_site,
        step=event.step,
        parent_step=event.parent_step,
        tool=event.tool,
        expected_s=event.expected_s,
        prompt_tokens=event.prompt_tokens,
        output_tokens=event.output_tokens,
        pieces=event.pieces,
        words=event.words,
        hidden=event.hidden,
        worker_id=event.worker,
        step_graph=None if event.graph is None else step_graph_to_wire(event.graph),
    )


def event_from_wire(message: predictor_pb2.WorkflowEvent) -> WorkflowEvent:
    """Raises:
    InvalidArgument: the event's kind is missing or unknown, it names no workflow, or its step graph is none.
    """
    kind = _KIND_FROM_WIRE.get(message.kind)
    if kind is None:
        raise InvalidArgument("events.kind", f"{message.kind} is not a kind of event")
    if not message.workflow_id:
        raise InvalidArgument("events.workflow_id", "must not be empty")
    try:
        graph = step_graph_from_wire(message.step_graph) if message.HasField("step_graph") else None
    except InvalidArgument as error:
        raise InvalidArgument(f"events.{error.field}", error.problem) from error
    return WorkflowEvent(
        kind=kind,
        workflow=message.workflow_id,
        sequence=message.sequence,
        time=message.time_s,
        workload=message.workload,
        agent=message.agent_id,
        call_site=message.call_site,
        step=message.step,
        parent_step=message.parent_step if message.HasField("parent_step") else None,
        tool=message.tool,
        expected_s=message.expected_s if message.HasField("expected_s") else None,
        prompt_tokens=message.prompt_tokens,
        output_tokens=message.output_tokens,
        pieces=tuple(message.pieces),
        words=tuple(message.words),
        hidden=message.hidden,
        worker=message.worker_id,
        graph=graph,
    )


def forecasts_to_wire(forecasts: Forecasts, snapshot: bool = False) -> predictor_pb2.ForecastBatch:
    """One batch; each agent's name travels once, if at all."""
    told = forecasts.compact()
    forecast = np.arange(told.survival.shape[1]) < told.lengths[:, None]  # which of the K steps
    return predictor_pb2.ForecastBatch(
        agents=told.names,
        snapshot=snapshot,
        workflow_ids=told.workflows,
        epochs=told.epochs.tolist(),
        made_at_s=told.made_at.tolist(),
        predictabilities=told.predictability.tolist(),
        behind_steps=told.behind.tolist(),
        ended=told.ended.tolist(),
        step_counts=told.lengths.tolist(),
        survivals=told.survival[forecast].tolist(),
        agent_counts=told.named[forecast].tolist(),
        agent_positions=told.agents.tolist(),
        probabilities=told.chances.tolist(),
    )


def forecasts_from_wire(batch: predictor_pb2.ForecastBatch) -> Forecasts:
    """Raises:
    InvalidArgument: columns of the batch do not fit together, or refer to an agent that it does not name.
    """
    number = len(batch.workflow_ids)
    columns = (batch.step_counts, batch.agent_counts, batch.agent_positions)
    lengths, counts, agents = (np.array(column, dtype=np.int64) for column in columns)  # which holds all of uint32
    for name, want in (
        ("epochs", number),
        ("made_at_s", number),
        ("predictabilities", number),
        ("behind_steps", number),
        ("ended", number),
        ("step_counts", number),
        ("survivals", lengths.sum()),
        ("agent_counts", lengths.sum()),
        ("agent_positions", counts.sum()),
        ("probabilities", counts.sum()),
    ):
        have = len(getattr(batch, name))
        if have != want:
            raise InvalidArgument(f"forecasts.{name}", f"must have {want} entries in this batch, got {have}")
    if len(agents) and agents.max() >= len(batch.agents):
        raise InvalidArgument("forecasts.agent_positions", f"{agents.max()} is none of the {len(batch.agents)} agents")
    forecast = np.arange(lengths.max(initial=0)) < lengths[:, None]
    survival, named = np.zeros(forecast.shape, dtype=np.float32), np.zeros(forecast.shape, dtype=np.int32)
    survival[forecast], named[forecast] = batch.survivals, counts
    return Forecasts(
        list(batch.workflow_ids),
        np.array(batch.epochs, dtype=np.uint64),
        np.array(batch.made_at_s, dtype=np.float64),
        np.array(batch.predictabilities, dtype=np.float32),
        np.array(batch.behind_steps, dtype=np.int32),
        np.array(batch.ended, dtype=np.bool_),
        lengths.astype(np.int32),
        survival,
        named,
        agents.astype(np.int32),
        np.array(batch.probabilities, dtype=np.float32),
        list(batch.agents),
    )
