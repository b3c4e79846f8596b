"""The steps of an open workflow, read from the events that the predictor was sent."""

from collections.abc import Iterable, Sequence

from pbkv_cluster.rpc.v1 import inspection_pb2, predictor_pb2


def path(events: Iterable[predictor_pb2.WorkflowEvent]) -> list[inspection_pb2.StepSummary]:
    """The steps that events tell of, in order of their numbers.

    Args:
        events: of one workflow, in order. Some may be missing: a long workflow's oldest are not kept.
    """
    steps: dict[int, inspection_pb2.StepSummary] = {}
    latest: inspection_pb2.StepSummary | None = None
    for event in events:
        match event.kind:
            case predictor_pb2.EVENT_KIND_STEP_STARTED:
                latest = steps[event.step] = inspection_pb2.StepSummary(
                    step=event.step,
                    agent_id=event.agent_id,
                    call_site=event.call_site,
                    parent_step=event.parent_step if event.HasField("parent_step") else None,
                    started_s=event.time_s,
                    prompt_tokens=event.prompt_tokens,
                )
            case predictor_pb2.EVENT_KIND_STEP_FINISHED if event.step in steps:
                step = steps[event.step]
                step.duration_s = max(0.0, event.time_s - step.started_s)
                step.output_tokens = event.output_tokens
            case predictor_pb2.EVENT_KIND_TOOL_STARTED if latest is not None:
                latest.tools.append(event.tool)
    return [steps[number] for number in sorted(steps)]


def latest_step(events: Sequence[predictor_pb2.WorkflowEvent]) -> tuple[str, str]:
    """The agent of the latest step, and the tool that the workflow waits for since; empty where there is none."""
    waits: list[str] = []
    finished: list[str] = []
    for event in reversed(events):
        match event.kind:
            case predictor_pb2.EVENT_KIND_STEP_STARTED:
                return event.agent_id, waits[0] if waits else ""
            case predictor_pb2.EVENT_KIND_TOOL_FINISHED:
                finished.append(event.tool)
            case predictor_pb2.EVENT_KIND_TOOL_STARTED if event.tool in finished:
                finished.remove(event.tool)
            case predictor_pb2.EVENT_KIND_TOOL_STARTED:
                waits.append(event.tool)
    return "", waits[0] if waits else ""
