"""Workflow events."""

from typing import cast

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.rpc.convert.step_graphs import step_graph_from_wire, step_graph_to_wire
from pbkv_cluster.rpc.v1 import predictor_pb2

_TO_WIRE = {
    kind: cast("predictor_pb2.EventKind", predictor_pb2.EventKind.Value(f"EVENT_KIND_{kind.name}")) for kind in EventKind
}
_FROM_WIRE = {wire: kind for kind, wire in _TO_WIRE.items()}


def event_to_wire(event: WorkflowEvent) -> predictor_pb2.WorkflowEvent:
    return predictor_pb2.WorkflowEvent(
        kind=_TO_WIRE[event.kind],
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
    """The event of a message.

    Raises:
        InvalidArgument: the event's kind is missing or unknown, it names no workflow, or its step graph is malformed.
    """
    kind = _FROM_WIRE.get(message.kind)
    if kind is None:
        raise InvalidArgument("events.kind", f"{message.kind} is not a kind of event")
    checks.not_empty("events.workflow_id", message.workflow_id)
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
