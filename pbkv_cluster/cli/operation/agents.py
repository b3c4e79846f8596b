"""`pbkv agents`: how well the prompts of each agent are reused, and where they stop sharing a prefix."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.cli.interrupts import on_event_loop
from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, Endpoint, connected
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import figures_table, result_console

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1 import inspection_pb2

agents_app = typer.Typer(name="agents", help="The agents that call the model.", no_args_is_help=True)


@agents_app.callback()
def _agents() -> None:
    pass


@agents_app.command()
@connected
def ls(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Lines.")] = 50,
    workload: Annotated[str, typer.Option(metavar="NAME", help="Only agents of this workload.")] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_target: JsonTarget = None,
) -> None:
    """List agents by call site, those first that have had most tokens computed again.

    The last column helps authors of prompts: from that token on, prompts of two workflows differ (median over the latest
    pairs), so nothing after it can be shared. A name or a time near the beginning of a prompt shows here.
    """
    check_json_target(json_target)
    agents = [_agent_json(agent) for agent in on_event_loop(_list(endpoint, limit, workload)).agents]
    # Names that no client gives take no room.
    named = [name for name in ("call_site", "workload") if any(agent[name] for agent in agents)]
    table = figures_table(
        ("agent", *(name.replace("_", " ") for name in named)),
        ("steps", "prompt", "reusable", "reused", "recomputed", "differ from"),
    )
    for agent in agents:
        prompt = agent["prompt_tokens"]
        table.add_row(
            agent["agent"],
            *(agent[name] or "-" for name in named),
            f"{agent['steps']:,}",
            f"{prompt:,}",
            f"{100 * agent['available_tokens'] / prompt:.0f} %" if prompt else "-",
            f"{100 * sum(agent['delivered'].values()) / prompt:.0f} %" if prompt else "-",
            f"{agent['recomputed_tokens']:,}",
            f"{agent['parting_tokens']:,}" if agent["parting_pairs"] else "-",
        )
    result_console(json_target).print(table if agents else "no step has finished yet")
    write_json(agents, json_target)


async def _list(endpoint: str, limit: int, workload: str) -> "inspection_pb2.ListAgentsResponse":
    from pbkv_cluster.client.inspection import InspectionClient

    async with InspectionClient(endpoint) as client:
        return await client.agents(limit, workload)


def _agent_json(agent: "inspection_pb2.AgentSummary") -> dict[str, Any]:
    from pbkv_cluster.rpc.convert import tiers_from_wire

    captured, delivered = tiers_from_wire(agent.captured), tiers_from_wire(agent.delivered)
    return {
        "workload": agent.workload,
        "agent": agent.agent_id,
        "call_site": agent.call_site,
        "steps": agent.steps,
        "prompt_tokens": agent.prompt_tokens,
        "available_tokens": agent.available_tokens,
        "captured": {str(tier): tokens for tier, tokens in captured.items()},
        "delivered": {str(tier): tokens for tier, tokens in delivered.items()},
        "recomputed_tokens": agent.available_tokens - sum(delivered.values()),
        "generated_tokens": agent.generated_tokens,
        "parting_pairs": agent.parting_pairs,
        "parting_tokens": agent.parting_tokens,
    }
