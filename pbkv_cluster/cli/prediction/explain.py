"""`pbkv predictor explain`: the forecast of an open workflow in a running cluster, and the experts behind it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.cli.interrupts import on_event_loop
from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, ConfigFile, Endpoint, connect_as_member, connected, load_settings
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import percent, result_console
from pbkv_cluster.core.errors import Unavailable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pbkv_cluster.rpc.v1 import predictor_pb2

    Explained = predictor_pb2.ExplainResponse
    Step = predictor_pb2.ExplainResponse.Step

_SHOWN = 3  # agents of each step
_TIMEOUT_S = 10.0


@connected
def explain(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="Id of an open workflow.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    config: ConfigFile = None,
    json_target: JsonTarget = None,
) -> None:
    """Show which agents are expected next in an open workflow: the forecast, and what each expert contributes.

    The JSON holds all agents that are forecast.
    """
    check_json_target(json_target)
    connect_as_member(load_settings(config, None, {}).config.security)  # the predictor itself is asked
    response = on_event_loop(fetch_forecast(endpoint, workflow))
    _print(workflow, response, result_console(json_target))
    write_json(explanation_json(workflow, response), json_target)


async def fetch_forecast(endpoint: str, workflow: str) -> "Explained":
    """Asks the predictor, whose address the gateway knows.

    Raises:
        Unavailable: the gateway or the predictor does not answer.
        NotFound: the predictor knows no such workflow.
    """
    from pbkv_cluster.client import AsyncClient
    from pbkv_cluster.client.operator_connection import typed_errors
    from pbkv_cluster.rpc.channel import connect
    from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

    async with AsyncClient(endpoint) as client:
        address = (await client.status()).predictor_address
    if not address:
        raise Unavailable(f"the gateway at {endpoint} reaches no predictor")
    async with connect(address) as channel:
        with typed_errors():
            request = predictor_pb2.ExplainRequest(workflow_id=workflow)
            return await predictor_pb2_grpc.PredictorServiceStub(channel).Explain(request, timeout=_TIMEOUT_S)


def explanation_json(workflow: str, response: "Explained") -> dict[str, Any]:
    """An explanation as JSON values. Probabilities of agents are conditional on the workflow not ending before the step."""

    def steps(of: "Any") -> list[dict[str, Any]]:
        return [
            {"survival": step.survival, "agents": {agent.agent_id: agent.probability for agent in step.agents}} for step in of
        ]

    return {
        "workflow": workflow,
        "workload": response.workload,
        "steps_begun": response.steps_begun,
        "output_known": response.output_known,
        "predictability": response.predictability,
        "steps": steps(response.steps),
        "experts": [
            {"name": expert.name, "weights": list(expert.weights), "steps": steps(expert.steps)} for expert in response.experts
        ],
    }


def _print(workflow: str, response: "Explained", console: "Console") -> None:
    from rich.text import Text

    begun = response.steps_begun
    moment = "no step has begun" if not begun else f"after step {begun - 1}, its output {_known(response)}"
    of = f" of workload {response.workload}" if response.workload else ""
    console.print(Text(f"Workflow {workflow}{of}: {moment}; predictability {response.predictability:.2f}"), soft_wrap=True)
    console.print(forecast_table(response))
    if response.experts:
        console.print(_experts_table(response))


def _known(response: "Explained") -> str:
    return "known" if response.output_known else "not known yet"


def forecast_table(response: "Explained") -> "Table":
    """The forecast for people: a line for each step ahead."""
    from rich.table import Table
    from rich.text import Text

    table = Table("step", "goes on", "likeliest agents, if it does", title="Forecast", title_justify="left")
    for ahead, step in enumerate(response.steps, start=1):
        table.add_row(f"+{ahead}", percent(step.survival), Text(_likeliest(step)))
    return table


def _experts_table(response: "Explained") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "step", "expert", "weight", "goes on", "likeliest agents, if it does", title="By expert", title_justify="left"
    )
    for at in range(len(response.steps)):
        for number, expert in enumerate(response.experts):
            step = expert.steps[at] if at < len(expert.steps) else None
            table.add_row(
                "" if number else f"+{at + 1}",
                Text(expert.name),
                percent(expert.weights[at]),
                "-" if step is None else percent(step.survival),
                Text("no forecast" if step is None else _likeliest(step)),
                end_section=number == len(response.experts) - 1,
            )
    return table


def _likeliest(step: "Step") -> str:
    shown = [f"{agent.agent_id} {percent(agent.probability)}" for agent in step.agents[:_SHOWN] if agent.probability > 0]
    return ", ".join(shown) or "no agent is known"
