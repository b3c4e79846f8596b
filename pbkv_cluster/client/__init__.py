"""The Python client.

    from pbkv_cluster.client import Client
    with Client("127.0.0.1:26100") as client, client.start_workflow() as workflow:
        step = workflow.run(agent="planner", prompt="Plan a trip.", max_tokens=32)
        print(step.text, step.usage.delivered)

`AsyncClient` is the same for asyncio. Both take the addresses of several gateways, and go on at another when one is gone, in
the middle of a step, too. Calls raise the errors of `pbkv_cluster.core.errors`.
"""

from pbkv_cluster.client.aio import AsyncClient, AsyncWorkflow
from pbkv_cluster.client.requests import Prompt, StepOptions
from pbkv_cluster.client.results import StepResult
from pbkv_cluster.client.sync import Client, Workflow
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, FinishReason, StepEvent, Tokens
from pbkv_cluster.core.workflow.step_graph import Join, StepGraph, StepNode

__all__ = [
    "Accepted",
    "AsyncClient",
    "AsyncWorkflow",
    "Client",
    "FinishReason",
    "Finished",
    "Join",
    "Prompt",
    "StepEvent",
    "StepGraph",
    "StepNode",
    "StepOptions",
    "StepResult",
    "Tokens",
    "Workflow",
]
