"""Reports of tool calls."""

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.tool_call import ToolCall
from pbkv_cluster.rpc.v1 import workflow_pb2


def tool_call_to_wire(workflow_id: str, call: ToolCall, started: bool) -> workflow_pb2.ReportToolCallRequest:
    message = workflow_pb2.ReportToolCallRequest
    return message(
        workflow_id=workflow_id,
        tool=call.tool,
        phase=message.PHASE_STARTED if started else message.PHASE_FINISHED,
        call_id=call.call_id,
        expected_s=call.expected_s,
    )


def tool_call_from_wire(message: workflow_pb2.ReportToolCallRequest) -> tuple[ToolCall, bool]:
    """The call, and whether it has started; else it has finished.

    Raises:
        InvalidArgument: a field is missing or out of its range.
    """
    phases = (workflow_pb2.ReportToolCallRequest.PHASE_STARTED, workflow_pb2.ReportToolCallRequest.PHASE_FINISHED)
    if message.phase not in phases:
        raise InvalidArgument("phase", "must be PHASE_STARTED or PHASE_FINISHED")
    expected_s = message.expected_s if message.HasField("expected_s") else None
    return ToolCall(message.tool, message.call_id, expected_s), message.phase == phases[0]
