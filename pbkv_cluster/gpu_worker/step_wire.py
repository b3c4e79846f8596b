"""Steps on the wire: a request as its message says it, outputs as messages, and a step's phases as spans."""

from collections.abc import Iterator
from dataclasses import replace

from pbkv_cluster.core import checks
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.step_events import Tokens
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.gpu_worker.engine.sequence import StepRequest
from pbkv_cluster.rpc.convert import (
    finish_reason_to_wire,
    load_speeds_to_wire,
    logprobs_to_wire,
    packed_from_wire,
    sampling_from_wire,
    step_graph_from_wire,
    usage_to_wire,
)
from pbkv_cluster.rpc.tracing import NO_SPAN, Span
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2


def step_from_wire(request: worker_pb2.RunStepRequest, namespace: Namespace, number: int) -> StepRequest:
    """Reads a request.

    Args:
        request: the message.
        namespace: of the worker's blocks, without a tenant.
        number: of the request on this worker; tells it from an earlier one with the same id that is still being cancelled.

    Raises:
        InvalidArgument: a field makes no sense; names it.
    """
    checks.not_empty("request_id", request.request_id)
    checks.not_empty("workflow_id", request.workflow_id)
    return StepRequest(
        id=f"{request.request_id}#{number}",
        workflow=request.workflow_id,
        agent=request.agent_id,
        step=request.step,
        namespace=replace(namespace, salt=request.tenant),
        prompt=packed_from_wire(request.prompt, "prompt"),
        sampling=sampling_from_wire(request.sampling),
        sent=packed_from_wire(request.sent, "sent"),
        priority=request.priority,
        graph=step_graph_from_wire(request.step_graph) if request.HasField("step_graph") else None,
        parent=request.parent_step if request.HasField("parent_step") else None,
    )


def output_to_wire(output: Output) -> Iterator[worker_pb2.RunStepEvent]:
    """The messages that tell of an output."""
    if output.tokens or output.text:
        yield worker_pb2.RunStepEvent(tokens=tokens_to_wire(tokens_of(output)))
    if output.finished is not None:
        yield finished_to_wire(output)


def tokens_of(output: Output) -> Tokens:
    return Tokens(pack(output.tokens), output.text, output.logprobs)


def tokens_to_wire(output: Tokens) -> worker_pb2.RunStepEvent.Tokens:
    return worker_pb2.RunStepEvent.Tokens(
        token_ids=types_pb2.PackedTokens(data=output.packed), text=output.text, logprobs=logprobs_to_wire(output.logprobs)
    )


def finished_to_wire(output: Output) -> worker_pb2.RunStepEvent:
    """The message that tells of the end, where an output is the last one."""
    assert output.finished is not None
    assert output.usage is not None
    return worker_pb2.RunStepEvent(
        finished=worker_pb2.RunStepEvent.Finished(
            reason=finish_reason_to_wire(output.finished),
            usage=usage_to_wire(output.usage),
            hidden=output.hidden,
            speeds=None if output.speeds is None else load_speeds_to_wire(output.speeds),
        )
    )


def trace_phases(span: Span, usage: Usage, end: float) -> None:
    """Adds the phases of a step that has ended, in seconds since the epoch, as its usage record has them."""
    if span is NO_SPAN:
        return
    first_token = end - usage.decode_s
    scheduled = first_token - usage.prefill_s
    span.part("queue", scheduled - usage.load_s - usage.queue_s, usage.queue_s)
    span.part("load", scheduled - usage.load_s, usage.load_s)
    span.part("prefill", scheduled, usage.prefill_s)
    span.part("decode", first_token, usage.decode_s)
    span.set(computed_tokens=usage.computed_tokens, preemptions=usage.preemptions)
    for tier, tokens in usage.delivered.items():
        span.set(**{f"delivered_{tier.value}_tokens": tokens})
