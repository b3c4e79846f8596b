"""`pbkv workflows`: the open workflows of a cluster, one of them with its steps and forecast, and how to end one."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.cli.interrupts import on_event_loop
from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, Endpoint, connected
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.core.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1 import inspection_pb2, store_pb2

workflows_app = typer.Typer(name="workflows", help="The open workflows of a cluster.", no_args_is_help=True)

CACHE_UNKNOWN = (FailedPrecondition, Unavailable)  # the engine does not tell what is cached, or a worker is away

Id = Annotated[str, typer.Argument(metavar="WORKFLOW", help="Id of an open workflow.")]


@workflows_app.command()
@connected
def ls(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Lines.")] = 50,
    workload: Annotated[str, typer.Option(metavar="NAME", help="Only workflows of this workload.")] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_target: JsonTarget = None,
) -> None:
    """List open workflows, those that were heard of last first."""
    from rich.table import Table

    check_json_target(json_target)
    answer = on_event_loop(_list(endpoint, limit, workload))
    found = [summary_json(each) for each in answer.workflows]
    console = result_console(json_target)
    table = Table("workflow", "workload", "open for", "steps", "latest agent", "now", "workers")
    now = time.time()
    for each in found:
        opened = f"{max(0.0, now - each['started_s']):.0f} s"
        table.add_row(
            each["workflow_id"],
            each["workload"] or "-",
            opened,
            str(each["steps"]),
            each["agent"] or "-",
            doing(each),
            ", ".join(each["workers"]),
        )
    console.print(table if found else "no workflow is open")
    if len(found) < answer.open:
        console.print(f"{len(found):,} of {answer.open:,} open workflows")
    write_json(found, json_target)


@workflows_app.command()
@connected
def show(workflow: Id, endpoint: Endpoint = DEFAULT_ENDPOINT, json_target: JsonTarget = None) -> None:
    """Show the steps of an open workflow and what of it is cached. `pbkv predictor explain` shows what is expected next."""
    from rich.table import Table

    check_json_target(json_target)
    answer, cached, problem = on_event_loop(_show(endpoint, workflow))
    value = {
        **summary_json(answer.summary),
        "path": [_step_json(step) for step in answer.steps],
        "cached": None if cached is None else _cached_json(cached),
        "cached_problem": problem,
    }
    console = result_console(json_target)
    console.print(f"{workflow}: workload {value['workload'] or '-'}, {value['steps']} steps, {doing(value)}")
    table = Table("step", "agent", "call site", "after", "seconds", "prompt", "output", "tools")
    for step in value["path"]:
        table.add_row(
            str(step["step"]),
            step["agent"],
            step["call_site"] or "-",
            "-" if step["parent_step"] is None else str(step["parent_step"]),
            "runs" if step["duration_s"] is None else f"{step['duration_s']:.2f}",
            f"{step['prompt_tokens']:,}",
            f"{step['output_tokens']:,}",
            ", ".join(step["tools"]) or "-",
        )
    console.print(table)
    if (held := value["cached"]) is None:
        console.print(f"cached: not known ({problem})", markup=False)
    else:
        tiers = ", ".join(f"{tier} {tokens:,}" for tier, tokens in held["tiers"].items()) or "nothing"
        console.print(f"cached, in tokens: {tiers}; {held['shared_tokens']:,} shared with other workflows")
    write_json(value, json_target)


@workflows_app.command()
@connected
def end(workflow: Id, endpoint: Endpoint = DEFAULT_ENDPOINT, json_target: JsonTarget = None) -> None:
    """End an open workflow: its running steps are cancelled, and what only it has used is no longer kept for it."""
    check_json_target(json_target)
    on_event_loop(_end(endpoint, workflow))
    result_console(json_target).print(f"{workflow} has ended", highlight=False, soft_wrap=True)
    write_json({"workflow_id": workflow}, json_target)


async def _list(endpoint: str, limit: int, workload: str) -> "inspection_pb2.ListWorkflowsResponse":
    from pbkv_cluster.client.inspection import InspectionClient

    async with InspectionClient(endpoint) as client:
        return await client.workflows(limit, workload)


async def _show(
    endpoint: str, workflow: str
) -> "tuple[inspection_pb2.GetWorkflowResponse, store_pb2.ListCacheResponse | None, str]":
    """A workflow, and what of it is cached, or why that is not known."""
    from pbkv_cluster.client.inspection import InspectionClient
    from pbkv_cluster.client.store import StoreClient

    async with InspectionClient(endpoint) as client, StoreClient(endpoint) as store:
        answer = await client.workflow(workflow)
        try:
            return answer, await store.list_cache(by="workflow", workflow=workflow, limit=1), ""
        except CACHE_UNKNOWN as error:
            return answer, None, str(error)


async def _end(endpoint: str, workflow: str) -> None:
    from pbkv_cluster.client.inspection import InspectionClient

    async with InspectionClient(endpoint) as client:
        await client.end_workflow(workflow)


def doing(value: dict[str, Any]) -> str:
    """What a workflow, as JSON values, does now."""
    if value["running_steps"]:
        return f"{value['running_steps']} running"
    if value["tool"]:
        return f"waits for {value['tool']}"
    return f"silent for {value['idle_s']:.0f} of {value['lease_s']:.0f} s"


def summary_json(summary: "inspection_pb2.WorkflowSummary") -> dict[str, Any]:
    """An open workflow as JSON values."""
    return {
        "workflow_id": summary.workflow_id,
        "workload": summary.workload,
        "started_s": summary.started_s,
        "idle_s": summary.idle_s,
        "lease_s": summary.lease_s,
        "steps": summary.steps,
        "running_steps": summary.running_steps,
        "agent": summary.agent_id,
        "tool": summary.tool,
        "workers": list(summary.worker_ids),
    }


def _step_json(step: "inspection_pb2.StepSummary") -> dict[str, Any]:
    return {
        "step": step.step,
        "agent": step.agent_id,
        "call_site": step.call_site,
        "parent_step": step.parent_step if step.HasField("parent_step") else None,
        "started_s": step.started_s,
        "duration_s": step.duration_s if step.HasField("duration_s") else None,
        "prompt_tokens": step.prompt_tokens,
        "output_tokens": step.output_tokens,
        "tools": list(step.tools),
    }


def _cached_json(cached: "store_pb2.ListCacheResponse") -> dict[str, Any]:
    from pbkv_cluster.rpc.convert import tiers_from_wire

    (entry,) = cached.entries or (None,)
    tiers = {} if entry is None else {str(tier): tokens for tier, tokens in tiers_from_wire(entry.tiers).items()}
    return {"tiers": tiers, "shared_tokens": 0 if entry is None else entry.shared_tokens}
