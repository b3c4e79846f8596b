"""The message of a step's request, which clients send, and gateways to each other."""

from pbkv_cluster.gateway.step.prompt_wire import prompt_from_wire, prompt_to_wire
from pbkv_cluster.gateway.step.request import StepRequest
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.v1 import workflow_pb2


def step_request_to_wire(request: StepRequest) -> workflow_pb2.SubmitStepRequest:
    return workflow_pb2.SubmitStepRequest(
        workflow_id=request.workflow_id,
        agent_id=request.agent,
        call_site=request.call_site,
        parent_step=request.parent_step,
        prompt=prompt_to_wire(request.prompt),
        sampling=convert.sampling_options_to_wire(request.sampling),
        priority=request.priority,
        tenant=request.tenant,
        step_id=request.step_id,
        resume=None if request.resume is None else convert.resumption_to_wire(request.resume),
        receiver=None if request.receiver is None else convert.receiver_to_wire(request.receiver),
        after=request.after,
    )


def step_request_from_wire(message: workflow_pb2.SubmitStepRequest) -> StepRequest:
    """Raises:
    InvalidArgument: a field makes no sense; named as on the wire.
    """
    return StepRequest(
        workflow_id=message.workflow_id,
        agent=message.agent_id,
        prompt=prompt_from_wire(message.prompt),
        call_site=message.call_site,
        parent_step=message.parent_step if message.HasField("parent_step") else None,
        sampling=convert.sampling_options_from_wire(message.sampling),
        priority=message.priority,
        tenant=message.tenant,
        step_id=message.step_id,
        resume=convert.resumption_from_wire(message.resume) if message.HasField("resume") else None,
        receiver=convert.receiver_from_wire(message.receiver) if message.HasField("receiver") else None,
        after=tuple(message.after),
    )
